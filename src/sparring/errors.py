"""What a user can mend, as opposed to what a programmer must."""

from __future__ import annotations


class UserError(ValueError):
    """A wrong value, or a missing or broken file. Its message is one line naming the thing and the fix.

    The command line prints it without a traceback; every other exception keeps its own.
    """
