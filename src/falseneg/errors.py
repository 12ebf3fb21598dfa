"""The one error that the command answers with one sentence instead of a traceback."""


class UserError(ValueError):
    """Something that the user can fix: the message says what was given, what is allowed and what to do."""
