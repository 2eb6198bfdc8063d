"""An experiment that was run, as a notebook displays it."""

import base64
import io
from dataclasses import dataclass
from html import escape
from typing import Any

from deepjax.figures.experiment import Claim


@dataclass(frozen=True, repr=False)
class Result:
    """What `figures.run` returns. As the last line of a notebook's cell, it is a table, a drawing and the claim."""

    experiment: Any  # its module
    numbers: Any
    claim: Claim

    def __repr__(self):
        return f"{'pass' if self.claim.holds else 'FAIL'}: {self.claim.text}"

    def _repr_html_(self):
        """Return the title, the table, the drawing as a PNG inside of the text, and the claim."""
        header, rows = self.experiment.table(self.numbers)
        lines = [_row("th", header), *(_row("td", row) for row in rows)]
        drawing = base64.b64encode(self._png()).decode()
        return (
            f"<p><b>{escape(self.experiment.TITLE)}</b></p><table>{''.join(lines)}</table>"
            f'<img style="max-width: 100%" src="data:image/png;base64,{drawing}"><p>{escape(repr(self))}</p>'
        )

    def _png(self):
        from matplotlib import style

        target = io.BytesIO()
        with style.context("tableau-colorblind10"):
            self.experiment.draw(self.numbers).savefig(target, format="png", dpi=80)
        return target.getvalue()


def _row(tag, cells):
    return f"<tr>{''.join(f'<{tag}>{escape(str(cell))}</{tag}>' for cell in cells)}</tr>"
