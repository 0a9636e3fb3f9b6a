"""`spkexp COMMAND …` is `python -m spkexp.COMMAND …`."""

import runpy
import sys
from difflib import get_close_matches

COMMANDS = {
    "train": "train an encoder, or go on with a run",
    "evaluate": "score a run on trials",
    "embed": "embeddings of files, whole or in windows; who speaks when",
    "verify": "compare two recordings",
    "prepare": "list a corpus once, and convert it",
    "describe": "charts of a dataset: speakers, durations, levels",
    "calibrate": "make scores log-likelihood ratios, and fuse systems",
    "compare": "runs side by side: tables, plots, a page, wandb",
    "profile": "parameters, MACs, memory and speed of models",
    "convert": "checkpoints of other toolkits as folders of this one",
    "export": "a model as ONNX or a torch program",
    "publish": "a model with its card to the Hugging Face hub",
}


def main() -> None:
    """Run the command that the first argument names; exits 2 for one that there is not."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: spkexp COMMAND [ARGUMENTS]\n\n" + "\n".join(f"  {c:10} {text}" for c, text in COMMANDS.items()))
        print("\n`spkexp COMMAND --help` says more. The same: python -m spkexp.COMMAND")
        return
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(COMMANDS)}"
        print(f"spkexp: no command {name!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"spkexp {name}", *sys.argv[2:]]
    runpy.run_module(f"spkexp.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
