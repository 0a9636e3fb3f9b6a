"""Errors that are the user's to mend. Entry points print them without a traceback and exit with code 2."""


class UserError(Exception):
    """A mistake of the user. The message names the thing (key, file or line) and the remedy."""


class ConfigError(UserError):
    """Everything that is wrong in a config, or in the arguments of a command (`where`), one mistake a line."""

    def __init__(self, mistakes: list[str], where: str = "config") -> None:
        self.mistakes, self.where = mistakes, where
        super().__init__("\n".join(mistakes))


class AudioError(UserError):
    """An audio file that cannot be used. The message starts with the file's path."""
