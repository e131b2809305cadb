"""The commands, one file each.  Enters: the words after the command's name; leaves: its output and an exit code.

`cli.py` finds `<name>.py` here and calls its `main(argv) -> int`; the first line of its docstring is its line in the
overview.  A new command is a new file.
"""
