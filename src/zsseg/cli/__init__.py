"""The command ``zsseg``. Nothing here imports torch before a command needs it."""
