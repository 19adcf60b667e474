"""A match: attacker and defender take turns, round after round, and then everyone meets everyone.

- ``values``: what a match is told. ``cold_start``: the supervised pairs that teach a model to write programs of edits.
- ``match``: the rounds, each phase of which is an ordinary run folder or a folder of attacks, so that a match goes on
  after any interruption.
- ``league``: each defender against each round's held-out attacks, and under everything else. ``gallery``: edits to
  look at.
"""

from pathlib import Path
from typing import Any

from sparring.recipes.match.gallery import write_match_gallery
from sparring.recipes.match.league import play_league
from sparring.recipes.match.match import Match, Say, Show, check_players
from sparring.recipes.match.values import MatchConfig


def run_match(config: MatchConfig, folder: Path, say: Say, show: Show) -> dict[str, Any]:
    """Play all rounds and the league in a folder, or go on where it stands; what ``match.json`` holds.

    Args:
        say: told of each phase as it begins.
        show: makes what shows the steps of a run.

    Raises KeyboardInterrupt if Ctrl-C ended it early, after the step at hand was finished and saved.
    """
    match = Match(config, folder, say, show)
    match.play()
    record = play_league(match)
    write_match_gallery(match)
    return record


__all__ = ["MatchConfig", "check_players", "run_match"]
