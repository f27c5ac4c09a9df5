"""SCAN: proposals calibrated by CLIP's view of the whole picture and of each mask (arXiv:2312.04089)."""
