"""Model families; each lives in its own folder and none imports another."""
