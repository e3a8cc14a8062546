"""A progress that keeps what is said."""

from edgekd.progress import Silent


class Heard(Silent):
    """`lines`: what `say` was told, in order."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)
