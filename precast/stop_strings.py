"""Stop strings in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence

_ROOT = 0


class StopStringMatcher:
    """Gives out a text as it arrives, up to the first stop string in it, and never more than is certain.

    A stop string may be spread over pieces, and begin or end within one. After each piece, the whole text so far
    counts: of the stop strings in it, the one that begins first ends the text, and of two that begin at the same
    place the shorter, which was complete first. What may still become part of a stop string is held back.

    Each character costs the same, however many stop strings there are and however long they are: they form a tree
    (Aho and Corasick, 1975), in which the current node is the longest end of the text that begins a stop string.

        stop strings "ab", "bcd"        text "xab"   node "ab": found, begins at 1
             root - a - ab              text "xbc"   node "bc": "bc" is held back
             root - b - bc - bcd        text "xbcx"  node root: "bcx" is given out

    Args:
        stops: not empty, and none of them empty.
        include: the text ends after the stop string instead of before it.

    Attributes:
        found: the stop string that has ended the text; None as long as there is none.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self.found: str | None = None
        self._include = include
        self._held = ""
        self._node = _ROOT
        self._children: list[dict[str, int]] = [{}]
        self._depth = [0]
        # Of each node: the node of the longest proper end of its text, and the longest stop string that ends there.
        self._shorter = [_ROOT]
        self._longest_stop: list[str | None] = [None]
        for stop in stops:
            self._add(stop)
        self._link()

    def push(self, piece: str, *, may_stop: bool = True) -> str:
        """The text that is certain now and was not before.

        Args:
            piece: what follows in the text.
            may_stop: False: a stop string that ends in this piece is text like any other.
        """
        if self.found is not None:
            return ""
        text = self._held + piece
        first_start = len(text)
        for end, character in enumerate(piece, start=len(self._held) + 1):
            node = self._next(self._node, character)
            stop = self._longest_stop[node]
            if stop is not None and may_stop and end - len(stop) < first_start:
                first_start, self.found = end - len(stop), stop
            while not self._children[node]:  # a whole stop string begins none, but its end may
                node = self._shorter[node]
            self._node = node
        if self.found is not None:
            self._held = ""
            return text[: first_start + len(self.found) * self._include]
        certain = len(text) - self._depth[self._node]
        self._held = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """What was held back, when nothing follows."""
        held, self._held, self._node = self._held, "", _ROOT
        return held

    def _add(self, stop: str) -> None:
        node = _ROOT
        for character in stop:
            if character not in self._children[node]:
                self._children[node][character] = len(self._children)
                self._children.append({})
                self._depth.append(self._depth[node] + 1)
                self._shorter.append(_ROOT)
                self._longest_stop.append(None)
            node = self._children[node][character]
        self._longest_stop[node] = stop

    def _link(self) -> None:
        level = list(self._children[_ROOT].values())
        while level:  # breadth first: the links lead to nodes that are nearer to the root, which have theirs
            next_level = []
            for node in level:
                self._longest_stop[node] = self._longest_stop[node] or self._longest_stop[self._shorter[node]]
                for character, child in self._children[node].items():
                    self._shorter[child] = self._next(self._shorter[node], character)
                    next_level.append(child)
            level = next_level

    def _next(self, node: int, character: str) -> int:
        while character not in self._children[node]:
            if node == _ROOT:
                return _ROOT
            node = self._shorter[node]
        return self._children[node][character]
