"""A trace of requests with reuse: conversations of several turns that begin with shared prompts."""

from __future__ import annotations

import hashlib
import heapq

import numpy as np

PROMPTS, MOST_PROMPT_PAGES, MOST_TURN_PAGES = 40, 40, 12
MEAN_TURNS = 5
PAUSE = (3.5, 1.2)  # mean and deviation of the logarithm of the time between two turns


def conversations(requests: int, users: int, seed: int = 1) -> list[list[str]]:
    """Return the pages of each request, in order: all of the conversation so far, and those of the new turn.

    Each user has one conversation at a time.  It begins with one of 40 prompts, the n-th of which is chosen with a
    probability proportional to 1/n, has 5 turns on average (geometric), and each turn adds 1 to 11 pages.  The pauses
    between turns are lognormal.  A real server has such requests; the numbers are ours.

    Returns
    -------
    list of list of str
        Keys as SGLang makes them: 64 hexadecimal digits.

    Examples
    --------
    >>> first, second, *_ = conversations(2, users=1)
    >>> second[: len(first)] == first
    True
    """
    chance, heap, made, trace = (
        np.random.default_rng(seed),
        list[tuple[float, int, _Conversation]](),
        0,
        list[list[str]](),
    )
    prompts = [range(int(pages)) for pages in chance.integers(4, MOST_PROMPT_PAGES, PROMPTS)]
    liked = 1 / np.arange(1, PROMPTS + 1)
    for _ in range(users):
        made += 1
        first = _Conversation(made, chance, prompts, liked / liked.sum())
        heapq.heappush(heap, (chance.exponential(np.exp(PAUSE[0])), made, first))
    while len(trace) < requests:
        now, _, conversation = heapq.heappop(heap)
        trace.append(conversation.next_turn(chance))
        if not conversation.turns_left:
            made += 1
            conversation = _Conversation(made, chance, prompts, liked / liked.sum())
        made += 1
        heapq.heappush(heap, (now + chance.lognormal(*PAUSE), made, conversation))
    return trace


class _Conversation:
    def __init__(self, number: int, chance: np.random.Generator, prompts: list[range], liked: np.ndarray):
        self._number, self.turns_left = number, int(chance.geometric(1 / MEAN_TURNS))
        prompt = int(chance.choice(PROMPTS, p=liked))
        self._pages = [_key("prompt", prompt, page) for page in prompts[prompt]]

    def next_turn(self, chance: np.random.Generator) -> list[str]:
        new = range(int(chance.integers(1, MOST_TURN_PAGES)))
        self._pages += [_key("turn", self._number, self.turns_left, page) for page in new]
        self.turns_left -= 1
        return list(self._pages)


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
