"""``oldrestore report``: a page to look through a batch."""

from typing import Annotated

from cyclopts import Parameter

from oldrestore.batch.report import write_report
from oldrestore.cli.options import Flag
from oldrestore.cli.terminal import DONE


def report(
    output: Annotated[str, Parameter(name="OUT")],
    /,
    *,
    embed: Flag = False,
) -> int:
    """Make a page to look through a batch: before and after, maps, figures, errors.

    Args:
        output: Folder of results of "oldrestore batch"; the page is its report.html.
        embed: Put the small pictures into the page, so that it can be sent as one file.
    """
    page, counts = write_report(output, embed=embed)
    print(f"{page}: {', '.join(f'{count} {state}' for state, count in counts.items())}")
    return DONE
