"""Columns of survival: the time, and whether it ended in the event. What 1 means is in the name.

survival_months + censorship (1 = censored), os_survival_days + os_censorship, time + event and the
like. A column whose name does not say what 1 means is refused: it would turn every result around.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

TIMES = re.compile(
    r"(?:(.*?)_)??(?:survival_|follow_?up_)?(months|days|years|time|survival|duration)"
)
CENSORED = re.compile(r"(?:(.*?)_)??censor(?:ship|ed|ing)?")
EVENTS = re.compile(r"(?:(.*?)_)??(?:event|event_observed|death|dead|died|deceased|recurrence)")
UNCLEAR = re.compile(r"(?:(.*?)_)??(?:status|vital_status|outcome)")
TRUE, FALSE = {"1", "1.0", "true"}, {"0", "0.0", "false"}


@dataclass(frozen=True)
class SurvivalColumns:
    """
    Args:
        time: The column of the time.
        event: The column that says how it ended.
        censored: Whether 1 in it means that the event was not seen.
    """

    time: str
    event: str
    censored: bool

    def __str__(self) -> str:
        meaning = "1 = censored, 0 = event" if self.censored else "1 = event, 0 = censored"
        return f"time in `{self.time}`; `{self.event}` is read as {meaning}, which its name says"

    def read(self, time: str, event: str, name: str) -> tuple[float, bool]:
        """Returns the time, and whether it ended in the event, of the row that is called name.

        Raises:
            ValueError: If a cell holds something else.
        """
        try:
            number = float(time)
        except ValueError:
            number = float("nan")
        if not isfinite(number) or number < 0:
            raise ValueError(
                f"`{self.time}` must be a time of at least 0, got {time!r} of {name}; correct it, "
                "or leave the cell empty."
            )
        if event.lower() not in TRUE | FALSE:
            raise ValueError(
                f"`{self.event}` must be 0 or 1, got {event!r} of {name}; correct it, or leave the "
                "cell empty."
            )
        return number, (event.lower() in TRUE) != self.censored


def survival_columns(
    columns: Iterable[str], path: Path, time_column: str | None = None
) -> SurvivalColumns | None:
    """Returns the columns of survival of a table, or None if it has none.

    Args:
        columns: All names of the table.
        path: The table, for what an error says.
        time_column: Which time is meant, if there are several.

    Raises:
        ValueError: If there are several, or no name says what 1 means.
    """
    columns = list(columns)
    pairs = []
    for time in [time_column] if time_column is not None else columns:
        if time not in columns:
            raise ValueError(f"{path} has no column {time!r}; it has {', '.join(columns)}.")
        found = TIMES.fullmatch(time.lower())
        start = (found[1] if found else None) or ""
        if found is None and time_column is None:
            continue
        for event in columns:
            for pattern, censored in ((CENSORED, True), (EVENTS, False), (UNCLEAR, None)):
                matched = pattern.fullmatch(event.lower())
                if matched and (matched[1] or "") == start:
                    pairs.append((time, event, censored))
    clear = [pair for pair in pairs if pair[2] is not None]
    if pairs and not clear:
        raise ValueError(
            f"The name of the column {pairs[0][1]!r} in {path} does not say whether 1 means that "
            "the patient died or that nothing was seen; rename it to event or to censored."
        )
    if time_column is not None and not clear:
        raise ValueError(
            f"{path} has no column that says how {time_column!r} ended; name one event (1 = it "
            "was seen) or censorship (1 = it was not)."
        )
    if len(clear) > 1:
        listed = ", ".join(f"{time} with {event}" for time, event, _ in clear)
        raise ValueError(
            f"{path} has several columns of survival: {listed}; choose one by --time-column, or "
            "delete the others."
        )
    return SurvivalColumns(*clear[0]) if clear else None  # type: ignore[arg-type]
