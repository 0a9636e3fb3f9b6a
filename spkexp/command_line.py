"""What stands on the command line of a command that composes a config: options of Hydra's, and overrides."""

from dataclasses import dataclass

from spkexp.errors import UserError

_OPTIONS_WITH_VALUE = {"--cfg", "-c", "--package", "-p", "--config-dir", "-cd", "--info", "-i"}
_LONG = (
    *("--cfg", "--package", "--config-dir", "--info", "--multirun", "--run", "--resolve"),
    *("--help", "--hydra-help", "--version", "--shell-completion"),
)
_NOT_OF_USE = ("--config-path", "-cp", "--config-name", "-cn", "--experimental-rerun")


@dataclass(frozen=True)
class CommandLine:
    """overrides: KEY=VALUE and the like; options: all else; multirun: -m; config_dir: a folder of configs beside conf/.

    shows: only the config is asked for, nothing is run.
    """

    overrides: list[str]
    options: list[str]
    multirun: bool
    config_dir: str | None
    shows: bool

    @staticmethod
    def read(arguments: list[str]) -> "CommandLine":
        """Raises UserError for an option of Hydra's that would get past the check."""
        overrides, options = list[str](), list[str]()
        config_dir, shows = None, False
        rest = iter(arguments)
        for argument in rest:
            option, equals, value = argument.partition("=")
            # Hydra takes the beginning of a long option's name, too.
            if len(option) > 2 and any(name.startswith(option) for name in _NOT_OF_USE):
                raise UserError(f"{option}: runs are made of conf/; for files of yours beside it: --config-dir DIR")
            if option.startswith("--") and option not in _LONG:  # Hydra would take shortened ones, unseen by the check
                raise UserError(f"{option}: no such option; there are {', '.join(_LONG)}")
            if option in _OPTIONS_WITH_VALUE:
                following = [] if equals else [next(rest, "")]
                value = value if equals else following[0]
                options += [argument, *following]
                config_dir = value if option in ("--config-dir", "-cd") else config_dir
                shows |= option in ("--cfg", "-c", "--info", "-i")
            else:
                (options if argument.startswith("-") else overrides).append(argument)
        multirun = bool({"-m", "--multirun"} & set(arguments)) or "hydra.mode=MULTIRUN" in overrides
        return CommandLine(overrides, options, multirun, config_dir, shows)
