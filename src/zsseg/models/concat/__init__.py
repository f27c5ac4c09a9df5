"""CONCAT: generalizable semantic vision queries (arXiv:2402.13697)."""
