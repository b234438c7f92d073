"""What the library and this package refuse."""


class LowrankError(RuntimeError):
    """What was refused and why, in one sentence. `code` is "ERR_SHAPE" and the like."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code

    def __reduce__(self):
        return LowrankError, (self.code, self.args[0])


def refuse(code, operand, expected, actual):
    raise LowrankError(code, f"{operand} must be {expected}, got {actual}")
