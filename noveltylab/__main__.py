"""The command `noveltylab`, which is also `python -m noveltylab`.

With a word, as in `noveltylab predict ...`, it calls the module of that word (command/words.py);
without one it hands the options to Hydra (job.py). Hydra takes a second to import, which the words
do without.
"""

import sys
import warnings

from noveltylab import __version__
from noveltylab.command.screen import say_error, show, terminal
from noveltylab.command.words import MODULES, run_word, wrong_word
from noveltylab.errors import UserError


def main() -> None:
    """Runs what was typed and ends with an exit code.

    0: done (or already complete). 1: a failure (also of any cell of a sweep). 2: bad input. 3: a
    sweep without failures of which some cells are not done, since other processes are running
    them. 129, 130, 143: ended by SIGHUP (a closed terminal), Ctrl-C, SIGTERM.
    """
    arguments = sys.argv[1:]
    # Pillow's limit of pixels: an error, which names the file, in the place of a warning
    warnings.filterwarnings("error", message="Image size .* exceeds limit")
    with terminal():
        if arguments and arguments[0] in MODULES:
            sys.exit(run_word(arguments[0], arguments[1:]))
        if arguments:
            mistake = wrong_word(arguments[0])
            if mistake:
                say_error(mistake)
                sys.exit(2)
        if "--version" in arguments:  # before Hydra says its own
            show(f"noveltylab {__version__}", sys.stdout)
            return
        if {"-h", "--help"} & set(arguments):
            from noveltylab.help import print_help
            from noveltylab.job import CONF, EXPERIMENTS

            try:
                print_help(CONF, arguments, EXPERIMENTS)
            except UserError as error:
                say_error(error)
                sys.exit(2)
            return
        from noveltylab.job import run_command

        run_command()


if __name__ == "__main__":
    main()
