"""One file per family: its ordered training stages."""
