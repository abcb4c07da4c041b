"""The loops of the index, over rows in a ring and the words by which they are found; see ``words``."""

from __future__ import annotations

import numpy as np

from .compiled import Flags, Matrix, Number, Numbers, ReadMatrix, ReadWords, Word, Words, compiled, unlocked
from .row import GENERATION, GUARD, SPACE
from .words import (
    NONE,
    WAYS,
    are_equal,
    bucket_of,
    guard_of,
    has_name,
    has_tag,
    hash_of,
    is_stale,
    is_stale_word,
    place_in,
    tag_of,
    word_for,
    word_of,
)

MISSING, TORN = -1, -2  # instead of a place
_LOOKS = 4  # at a row that others replace meanwhile

# -- looking up ----------------------------------------------------------------------------------------


@compiled
def _look_up(
    words: Words, rows: Matrix, key: ReadWords, space: Word, generations: ReadWords, found: Words
) -> Number:
    """Copy the row of a page to ``found``; return its place, ``MISSING`` or ``TORN``.

    A row that is not the one that its word tells of may have been replaced between the two looks: then the word is
    another one by now.
    """
    hashed = hash_of(key, space)
    tag, answer = tag_of(hashed), MISSING
    for _ in range(_LOOKS):
        answer, changed = MISSING, False
        for side in range(2):
            first = bucket_of(hashed, side, len(words))
            for slot in range(first, first + WAYS):
                word = words[slot]
                if not has_tag(word, tag) or (len(generations) and is_stale_word(word, generations)):
                    continue
                place = place_in(word, len(rows))
                found[:] = rows[place]
                if found[GUARD] == guard_of(found):
                    if has_name(found, key, space) and not (
                        len(generations) and is_stale(found, generations)
                    ):
                        return place
                elif words[slot] == word:
                    answer = TORN
                if words[slot] != word:
                    changed = True
        if not changed:
            break
    found[:] = NONE
    return answer


@unlocked
def look_up(
    words: Words,
    rows: Matrix,
    keys: ReadMatrix,
    space: Word,
    generations: ReadWords,
    found: Matrix,
    places: Numbers,
) -> Number:
    """Look up those of n pages whose place is ``TORN``; return how many remain torn.

    Parameters
    ----------
    words, rows
        The table, which others may change meanwhile.
    keys, space
        (n, 4), and the space of all of them.
    generations
        Of each segment; without any, stale rows are found too.
    found, places
        (n, 12) and (n,), filled in: zeros and ``MISSING`` for a page that is not listed.
    """
    torn = 0
    for i in range(len(keys)):
        if places[i] == TORN:
            places[i] = _look_up(words, rows, keys[i], space, generations, found[i])
            torn += places[i] == TORN
    return torn


# -- changing ------------------------------------------------------------------------------------------


@unlocked
def append(rows: Matrix, head: Words, new: ReadMatrix, generations: ReadWords, places: Numbers) -> Number:
    """Write new rows, (n, 12), to the next places of the ring whose rows are stale; return for how many there are.

    ``places``, (n,), are filled in: ``MISSING`` for rows for which there is none.
    """
    room, looked, at = len(rows), 0, int(head[0]) % len(rows)
    places[:] = MISSING
    for i in range(len(new)):
        while looked < room and not is_stale(rows[at], generations):
            at = (at + 1) % room
            looked += 1
        if looked == room:
            return i
        rows[at] = new[i]
        places[i] = at
        at = (at + 1) % room
        looked += 1
        head[0] = np.uint64(at)
    return len(new)


@compiled
def _outlived(words: Words, rows: Matrix, hashed: Word, generations: ReadWords) -> Number:
    """Return a slot whose word has outlived its row, though the low bits of its generation are those of now; or -1."""
    for side in range(2):
        first = bucket_of(hashed, side, len(words))
        for slot in range(first, first + WAYS):
            place = place_in(words[slot], len(rows))
            if is_stale(rows[place], generations) or word_of(rows[place], place) != words[slot]:
                return slot
    return -1


@compiled
def _slot_for(
    words: Words, rows: Matrix, row: ReadWords, hashed: Word, generations: ReadWords
) -> tuple[Number, Number]:
    """Return where the word of a new row goes, or -1, and the place of the row that it replaces, or -1.

    In place of the word of the same page, or of one whose row is damaged; otherwise in that of the two buckets which
    has more words that are none, or that are stale.
    """
    tag, damaged, empty, stale, most_empty, most_stale = tag_of(hashed), -1, -1, -1, 0, 0
    for side in range(2):
        first = bucket_of(hashed, side, len(words))
        here_empty, here_stale, one_empty, one_stale = 0, 0, -1, -1
        for slot in range(first, first + WAYS):
            word = words[slot]
            if word == NONE:
                here_empty, one_empty = here_empty + 1, slot
                continue
            if has_tag(word, tag):
                place = place_in(word, len(rows))
                if rows[place, GUARD] != guard_of(rows[place]):
                    damaged = slot
                elif has_name(rows[place], row, row[SPACE]):
                    return slot, place
            if is_stale_word(word, generations):
                here_stale, one_stale = here_stale + 1, slot
        if here_empty > most_empty:
            most_empty, empty = here_empty, one_empty
        if here_stale > most_stale:
            most_stale, stale = here_stale, one_stale
    for slot in (damaged, empty, stale):
        if slot >= 0:
            return slot, -1
    return _outlived(words, rows, hashed, generations), -1


@unlocked
def enlist(
    words: Words, rows: Matrix, new: ReadMatrix, places: Numbers, generations: ReadWords, listed: Flags
) -> Number:
    """Write the words of new rows, (n, 12), that are at these places; return how many rows they replace.

    ``listed``, (n,), are filled in.  A row that is replaced, or for which no word has room, becomes stale.
    """
    replaced = 0
    for i in range(len(new)):
        listed[i] = False
        if places[i] < 0:
            continue
        hashed = hash_of(new[i], new[i, SPACE])
        slot, old = _slot_for(words, rows, new[i], hashed, generations)
        if slot < 0:
            rows[places[i], GENERATION] = NONE
            continue
        words[slot] = word_for(hashed, new[i], places[i])
        listed[i] = True
        if old >= 0 and not is_stale(rows[old], generations):
            for j in range(i, len(new)):  # this row, or a later one, may be where the older one was
                if places[j] == old:
                    old = -1
                    break
            if old >= 0:
                rows[old, GENERATION] = NONE
                replaced += 1
    return replaced


@unlocked
def forget(words: Words, rows: Matrix, gone: ReadMatrix) -> Number:
    """Take those of these rows, (n, 12), off the table that are in it unchanged; return how many."""
    count = 0
    for i in range(len(gone)):
        hashed = hash_of(gone[i], gone[i, SPACE])
        for side in range(2):
            first = bucket_of(hashed, side, len(words))
            for slot in range(first, first + WAYS):
                word = words[slot]
                place = place_in(word, len(rows))
                if has_tag(word, tag_of(hashed)) and are_equal(rows[place], gone[i]):
                    words[slot] = NONE
                    rows[place, GENERATION] = NONE
                    count += 1
    return count


# -- all of them ---------------------------------------------------------------------------------------


@unlocked
def walk(words: Words, rows: Matrix, first: Number, end: Number, found: Matrix) -> Number:
    """Copy the rows of the words in some slots to ``found``, (n, 12), without those that are damaged.

    Returns how many there are; ``found`` has room for one for each slot.
    """
    count = 0
    for slot in range(first, end):
        word = words[slot]
        if word == NONE:
            continue
        place, row = place_in(word, len(rows)), found[count]
        row[:] = rows[place]
        hashed = hash_of(row, row[SPACE])
        if row[GUARD] != guard_of(row) or word_for(hashed, row, place) != word:
            continue
        bucket = slot - slot % WAYS
        if bucket == bucket_of(hashed, 0, len(words)) or bucket == bucket_of(hashed, 1, len(words)):
            count += 1
    return count


@unlocked
def damaged(rows: Matrix, generations: ReadWords) -> Number:
    """Return how many rows are of the generation that their segment has, and do not match their guard."""
    count = 0
    for place in range(len(rows)):
        count += not is_stale(rows[place], generations) and rows[place, GUARD] != guard_of(rows[place])
    return count


@unlocked
def sweep(words: Words, rows: Matrix) -> Number:
    """Make stale the rows to which no word points, such as those of a process that was killed; return 0."""
    lost = np.ones(len(rows), np.bool_)
    for slot in range(len(words)):
        place = place_in(words[slot], len(rows))
        if words[slot] == word_of(rows[place], place):
            lost[place] = False
    for place in range(len(rows)):
        if lost[place]:
            rows[place, GENERATION] = NONE
    return 0
