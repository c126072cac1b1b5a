"""`python -m dreamlab`: which commands there are."""

import sys

COMMANDS = {
    "train": "teach a model a subject from a few photos; with -m a sweep",
    "sample": "draw pictures with a run, a snapshot or any model",
    "evaluate": "measure a run again, its snapshots too, or anybody's model",
    "report": "a page of one run, or of many side by side",
    "export": "one file for A1111 and ComfyUI, a diffusers folder, or an upload to the hub",
    "inspect": "look at photos before training: what is wrong with them, and what the model will see",
    "tokens": "find identifiers that mean little to a model, or judge given ones",
    "bench": "how fast this machine trains and draws",
}


def listing() -> str:
    """A line for each command."""
    width = max(map(len, COMMANDS))
    lines = [f"  python -m dreamlab.{name:<{width}}  {told}" for name, told in COMMANDS.items()]
    return "\n".join(["Commands (--help after one lists its settings):", *lines])


def main() -> None:
    """List the commands; another word gets the nearest one."""
    if not sys.argv[1:] or sys.argv[1] in ("-h", "--help", "help"):
        print(listing())
        return
    from dreamlab.errors import did_you_mean

    word = sys.argv[1]
    if word in COMMANDS:
        print(f"dreamlab: Write python -m dreamlab.{word}, with a dot.", file=sys.stderr)
    else:
        print(f"dreamlab: There is no command called {word!r}.{did_you_mean(word, COMMANDS)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
