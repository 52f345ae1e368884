"""Why the model gave no answer.

In a file of their own: they are raised where PyTorch is imported, and caught where it is not.
"""


class NotReadyError(RuntimeError):
    """The model cannot answer yet, or never will; the message says why."""


class OverloadedError(RuntimeError):
    """More requests wait for the model than the queue may hold."""


class NotFiniteError(RuntimeError):
    """The model answered NaN or infinity. JSON has no word for them, and no client should act on them."""
