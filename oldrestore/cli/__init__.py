"""The command line: ``oldrestore restore | batch | report | detect | degrade | train | ...``.

Exit codes: 0 all done; 1 some photo failed, and the others are done; 2 a request that makes no
sense, and nothing is done; 3 a batch ended early, as its results can be written no more, and goes
on when it is started again; 130 interrupted. Messages go to stderr, results to stdout. A command is
read when it is asked for, from the module named here.
"""

import sys
import warnings
from collections.abc import Sequence

from cyclopts import App, CycloptsError

import oldrestore
from oldrestore.cli.terminal import DONE, INTERRUPTED, USAGE, say

app = App(
    name="oldrestore",
    help="Bring old photographs back: scratches, spots, tears, noise and fading.",
    version=oldrestore.__version__,
    suppress_keyboard_interrupt=False,  # its exit code is ours
)
app.command("oldrestore.cli.photos:restore", name="restore", help="Restore photos.")
app.command(
    "oldrestore.cli.batch:batch",
    name="batch",
    help="Restore a whole collection; started again, it goes on where it was.",
)
app.command(
    "oldrestore.cli.report:report", name="report", help="Make a page to look through a batch."
)
app.command(
    "oldrestore.cli.photos:detect",
    name="detect",
    help="Find scratches, spots and tears: write masks, white = damaged.",
)
app.command(
    "oldrestore.cli.degrade:degrade",
    name="degrade",
    help="Make pairs of damaged and clean photos, with masks, from a folder of clean photos.",
)
app.command(
    "oldrestore.train.cli:app", name="train", help="Train the networks on photos of your own."
)
app.command(
    "oldrestore.evaluate:main", name="evaluate", help="Measure the restoration on clean photos."
)
app.command(
    "oldrestore.cli.convert:convert",
    name="convert",
    help="Bring the published weights of Wan et al. into one file for --weights.",
)
app.command(
    "oldrestore.cli.info:info",
    name="info",
    help="Say what is installed, which weights are used, and what runs the operations.",
)


def main() -> None:
    """Run what ``sys.argv`` asks for and exit with its code."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """Run a command; returns its exit code."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say(str(message))
        try:
            code = app(arguments, exit_on_error=False, result_action="return_value")
        except CycloptsError:  # it has printed its message
            return USAGE
        except KeyboardInterrupt:
            say("interrupted")
            return INTERRUPTED
        except (ValueError, OSError) as error:
            say(str(error))
            return USAGE
    return code if isinstance(code, int) else DONE
