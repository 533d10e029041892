"""The command `edge`. Commands are imported when they are called, so that `edge --help` answers at once."""
