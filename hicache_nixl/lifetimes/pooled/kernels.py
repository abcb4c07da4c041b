"""The loops of the index: rows in a ring, and the words by which they are found.

A word of 64 bits has, from the top, 20 bits of the tag of a row's key and space, 12 of its segment, the low 8 of its
generation, and 24 of its place.  0 is no word.  Words are written whole, so readers see the one before or the new one.
The hash of a row's key and space names two buckets of 16 words; one of them has the word.
"""

from __future__ import annotations

import numpy as np

from .compiled import (
    Flag,
    Flags,
    Number,
    Numbers,
    ReadTable,
    ReadWords,
    Table,
    Word,
    Words,
    compiled,
    unlocked,
)
from .row import GENERATION, GUARD, KEY_WORDS, ROW_WORDS, SEGMENT, SPACE

# Measured with 10^5 rows in buckets of 8 and 16: of 16 none is full at a load of three quarters.
WAYS = 16
MOST_ROWS = 1 << 24
MISSING, TORN = -1, -2  # instead of a place
_LOOKS = 4  # at a row that others replace meanwhile

# A change of these numbers is a new format.  The factors are odd, so that no bit of a word is lost.
_GOLDEN = 0x9E3779B97F4A7C15
FACTORS = np.array([pow(_GOLDEN, power, 2**64) for power in range(1, GUARD + 1)], np.uint64)
_START, _FACTOR = np.uint64(_GOLDEN), np.uint64(0xBF58476D1CE4E5B9)
_NONE, _ONE, _TEN, _SHIFT, _HALF = (np.uint64(number) for number in (0, 1, 10, 29, 32))
_LOWER, _TEN_BITS = np.uint64(2**32 - 1), np.uint64(2**10 - 1)
_TAG_SHIFT, _SEGMENT_SHIFT, _GENERATION_SHIFT = np.uint64(44), np.uint64(32), np.uint64(24)
_SEGMENT_BITS, _GENERATION_BITS, _PLACE_BITS = np.uint64(2**12 - 1), np.uint64(2**8 - 1), np.uint64(2**24 - 1)


# -- hashes --------------------------------------------------------------------------------------------


@compiled
def _folded(word: Word) -> Word:
    """Mix the upper half into the lower one.

    A factor moves differences only upwards, so changes of the highest bits of two words would cancel.
    """
    return word ^ (word >> _HALF)


@compiled
def _finished(total: Word) -> Word:
    total += _START
    total ^= total >> _SHIFT
    total *= _FACTOR
    return total ^ (total >> _HALF)


@compiled
def guard_of(row: ReadWords) -> Word:
    """Return the guard that a row, shape (12,), should have."""
    total = _NONE
    for j in range(GUARD):
        total += _folded(row[j]) * FACTORS[j]
    return _finished(total)


@compiled
def hash_of(key: ReadWords, space: Word) -> Word:
    """Return the hash of a key, shape (4,), and a space; never 0."""
    total = _folded(space) * FACTORS[SPACE]
    for j in range(KEY_WORDS):
        total += _folded(key[j]) * FACTORS[j]
    return max(_finished(total), _ONE)


@compiled
def guard(rows: Table) -> Number:
    """Fill in the guards of rows, shape (n, 12)."""
    for i in range(len(rows)):
        rows[i, GUARD] = guard_of(rows[i])
    return len(rows)


# -- words ---------------------------------------------------------------------------------------------


@compiled
def _bucket_of(hashed: Word, side: Number, slots: Number) -> Number:
    """Return the first slot of one of the two buckets of a hash.

    A half of the hash, as a fraction of 2^32, is the place of the bucket among all; its low bits are free for the tag.
    """
    half = hashed >> _HALF if side else hashed & _LOWER
    return np.int64(half * np.uint64(slots // WAYS) >> _HALF) * WAYS


@compiled
def _tag_of(hashed: Word) -> Word:
    """Return the tag of a hash, where a word has it; never 0."""
    tag = (hashed & _TEN_BITS) | (hashed >> _HALF & _TEN_BITS) << _TEN
    return max(tag, _ONE) << _TAG_SHIFT


@compiled
def _word_for(hashed: Word, row: ReadWords, place: Number) -> Word:
    word = _tag_of(hashed) | (row[SEGMENT] & _SEGMENT_BITS) << _SEGMENT_SHIFT
    return word | (row[GENERATION] & _GENERATION_BITS) << _GENERATION_SHIFT | np.uint64(place)


@compiled
def _word_of(row: ReadWords, place: Number) -> Word:
    return _word_for(hash_of(row, row[SPACE]), row, place)


@compiled
def _has_tag(word: Word, tag: Word) -> Flag:
    return (word ^ tag) >> _TAG_SHIFT == _NONE


@compiled
def _place_in(word: Word, room: Number) -> Number:
    return min(np.int64(word & _PLACE_BITS), room - 1)


@compiled
def _is_stale_word(word: Word, generations: ReadWords) -> Flag:
    """Tell whether a word is of a generation that its segment does not have any more.

    Of 256 stale words one is taken for another: it has the same low bits.
    """
    segment = np.int64(word >> _SEGMENT_SHIFT & _SEGMENT_BITS)
    written = word >> _GENERATION_SHIFT & _GENERATION_BITS
    return segment >= len(generations) or generations[segment] & _GENERATION_BITS != written


@compiled
def _is_stale(row: ReadWords, generations: ReadWords) -> Flag:
    """Tell whether a row is not of the generation that its segment has, or of none."""
    segment, written = row[SEGMENT], row[GENERATION]
    return (
        written == _NONE
        or segment >= np.uint64(len(generations))
        or generations[np.int64(segment)] != written
    )


@compiled
def are_stale(rows: ReadTable, generations: ReadWords) -> Flags:
    """Tell which rows, shape (n, 12), are not of the generation that their segment has, or of none."""
    stale = np.empty(len(rows), np.bool_)
    for i in range(len(rows)):
        stale[i] = _is_stale(rows[i], generations)
    return stale


@compiled
def _has_name(row: ReadWords, key: ReadWords, space: Word) -> Flag:
    for j in range(KEY_WORDS):
        if row[j] != key[j]:
            return False
    return row[SPACE] == space


@compiled
def _are_equal(row: ReadWords, other: ReadWords) -> Flag:
    difference = _NONE
    for j in range(ROW_WORDS):
        difference |= row[j] ^ other[j]
    return difference == _NONE


# -- looking up ----------------------------------------------------------------------------------------


@compiled
def _look_up(
    words: Words, rows: Table, key: ReadWords, space: Word, generations: ReadWords, found: Words
) -> Number:
    """Copy the row of a page to ``found``; return its place, ``MISSING`` or ``TORN``.

    A row that is not the one that its word tells of may have been replaced between the two looks: then the word is
    another one by now.
    """
    hashed = hash_of(key, space)
    tag, answer = _tag_of(hashed), MISSING
    for _ in range(_LOOKS):
        answer, changed = MISSING, False
        for side in range(2):
            first = _bucket_of(hashed, side, len(words))
            for slot in range(first, first + WAYS):
                word = words[slot]
                if not _has_tag(word, tag) or (len(generations) and _is_stale_word(word, generations)):
                    continue
                place = _place_in(word, len(rows))
                found[:] = rows[place]
                if found[GUARD] == guard_of(found):
                    if _has_name(found, key, space) and not (
                        len(generations) and _is_stale(found, generations)
                    ):
                        return place
                elif words[slot] == word:
                    answer = TORN
                if words[slot] != word:
                    changed = True
        if not changed:
            break
    found[:] = _NONE
    return answer


@unlocked
def look_up(
    words: Words,
    rows: Table,
    keys: ReadTable,
    space: Word,
    generations: ReadWords,
    found: Table,
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
def append(rows: Table, head: Words, new: ReadTable, generations: ReadWords, places: Numbers) -> Number:
    """Write new rows, (n, 12), to the next places of the ring whose rows are stale; return for how many there are.

    ``places``, (n,), are filled in: ``MISSING`` for rows for which there is none.
    """
    room, looked, at = len(rows), 0, int(head[0]) % len(rows)
    places[:] = MISSING
    for i in range(len(new)):
        while looked < room and not _is_stale(rows[at], generations):
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
def _outlived(words: Words, rows: Table, hashed: Word, generations: ReadWords) -> Number:
    """Return a slot whose word has outlived its row, though the low bits of its generation are those of now; or -1."""
    for side in range(2):
        first = _bucket_of(hashed, side, len(words))
        for slot in range(first, first + WAYS):
            place = _place_in(words[slot], len(rows))
            if _is_stale(rows[place], generations) or _word_of(rows[place], place) != words[slot]:
                return slot
    return -1


@compiled
def _slot_for(
    words: Words, rows: Table, row: ReadWords, hashed: Word, generations: ReadWords
) -> tuple[Number, Number]:
    """Return where the word of a new row goes, or -1, and the place of the row that it replaces, or -1.

    In place of the word of the same page, or of one whose row is damaged; otherwise in that of the two buckets which
    has more words that are none, or that are stale.
    """
    tag, damaged, empty, stale, most_empty, most_stale = _tag_of(hashed), -1, -1, -1, 0, 0
    for side in range(2):
        first = _bucket_of(hashed, side, len(words))
        here_empty, here_stale, one_empty, one_stale = 0, 0, -1, -1
        for slot in range(first, first + WAYS):
            word = words[slot]
            if word == _NONE:
                here_empty, one_empty = here_empty + 1, slot
                continue
            if _has_tag(word, tag):
                place = _place_in(word, len(rows))
                if rows[place, GUARD] != guard_of(rows[place]):
                    damaged = slot
                elif _has_name(rows[place], row, row[SPACE]):
                    return slot, place
            if _is_stale_word(word, generations):
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
    words: Words, rows: Table, new: ReadTable, places: Numbers, generations: ReadWords, listed: Flags
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
            rows[places[i], GENERATION] = _NONE
            continue
        words[slot] = _word_for(hashed, new[i], places[i])
        listed[i] = True
        if old >= 0 and not _is_stale(rows[old], generations):
            for j in range(i, len(new)):  # this row, or a later one, may be where the older one was
                if places[j] == old:
                    old = -1
                    break
            if old >= 0:
                rows[old, GENERATION] = _NONE
                replaced += 1
    return replaced


@unlocked
def forget(words: Words, rows: Table, gone: ReadTable) -> Number:
    """Take those of these rows, (n, 12), off the table that are in it unchanged; return how many."""
    count = 0
    for i in range(len(gone)):
        hashed = hash_of(gone[i], gone[i, SPACE])
        for side in range(2):
            first = _bucket_of(hashed, side, len(words))
            for slot in range(first, first + WAYS):
                word = words[slot]
                place = _place_in(word, len(rows))
                if _has_tag(word, _tag_of(hashed)) and _are_equal(rows[place], gone[i]):
                    words[slot] = _NONE
                    rows[place, GENERATION] = _NONE
                    count += 1
    return count


# -- all of them ---------------------------------------------------------------------------------------


@unlocked
def walk(words: Words, rows: Table, first: Number, end: Number, found: Table) -> Number:
    """Copy the rows of the words in some slots to ``found``, (n, 12), without those that are damaged.

    Returns how many there are; ``found`` has room for one for each slot.
    """
    count = 0
    for slot in range(first, end):
        word = words[slot]
        if word == _NONE:
            continue
        place, row = _place_in(word, len(rows)), found[count]
        row[:] = rows[place]
        hashed = hash_of(row, row[SPACE])
        if row[GUARD] != guard_of(row) or _word_for(hashed, row, place) != word:
            continue
        bucket = slot - slot % WAYS
        if bucket == _bucket_of(hashed, 0, len(words)) or bucket == _bucket_of(hashed, 1, len(words)):
            count += 1
    return count


@unlocked
def damaged(rows: Table, generations: ReadWords) -> Number:
    """Return how many rows are of the generation that their segment has, and do not match their guard."""
    count = 0
    for place in range(len(rows)):
        count += not _is_stale(rows[place], generations) and rows[place, GUARD] != guard_of(rows[place])
    return count


@unlocked
def sweep(words: Words, rows: Table) -> Number:
    """Make stale the rows to which no word points, such as those of a process that was killed; return 0."""
    lost = np.ones(len(rows), np.bool_)
    for slot in range(len(words)):
        place = _place_in(words[slot], len(rows))
        if words[slot] == _word_of(rows[place], place):
            lost[place] = False
    for place in range(len(rows)):
        if lost[place]:
            rows[place, GENERATION] = _NONE
    return 0
