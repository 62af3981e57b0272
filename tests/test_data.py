import hashlib
import itertools
import math
import re
import string
from collections import Counter
from importlib import resources

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmlib import data, rng
from mmlib.data import (
    Examples,
    Vocabulary,
    examples,
    minibatches,
    read_names,
    split,
)
from mmlib.rng import generator

pytestmark = pytest.mark.usefixtures("no_global_randomness")

FILE = resources.files("mmlib").joinpath("names.txt")
CARD = resources.files("mmlib").joinpath("NAMES.md").read_text(encoding="utf-8")
SHA256 = "eea21de72ab6e25336728bf62feb776535e086eb7020a1390a3984a56cbe4396"

TINY = ["ab", "b", "aab"]
VOCABULARY = Vocabulary((".", "a", "b"))


def batches():
    return rng.generator(0, "batches")


# The corpus


def test_the_corpus_is_the_file_that_the_book_was_written_with():
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() == SHA256


def test_the_corpus_is_32000_different_names_in_order(names):
    assert len(names) == 32_000 and names == sorted(set(names))


def test_the_corpus_is_lower_case_a_to_z_and_uses_every_letter(names):
    assert set("".join(names)) == set(string.ascii_lowercase)
    assert all(re.fullmatch("[a-z]{2,15}", name) for name in names)
    assert FILE.read_bytes() == "".join(f"{name}\n" for name in names).encode()


def card_table(heading):
    lines = CARD.split(f"### {heading}\n")[1].split("\n## ")[0].split("\n### ")[0].splitlines()
    rows = [[cell.strip().replace(",", "") for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return rows[2:]


def test_the_card_counts_the_letters_of_the_file(names):
    letters, first, last = (Counter(x) for x in ("".join(names), (n[0] for n in names), (n[-1] for n in names)))
    share = {c: f"{100 * letters[c] / letters.total():.2f}" for c in letters}
    expected = [[c, *map(str, (letters[c], share[c], first[c], last[c]))] for c in string.ascii_lowercase]
    assert card_table("Letters") == expected


def test_the_card_counts_the_lengths_of_the_file(names):
    assert card_table("Lengths") == [[str(k), str(n)] for k, n in sorted(Counter(map(len, names)).items())]


def test_the_card_states_the_totals_of_the_file(names):
    letters = sum(map(len, names))
    for row in (
        f"| sha256 | `{SHA256}` |",
        f"| bytes | {len(FILE.read_bytes()):,} |",
        f"| names | {len(names):,}, each once, sorted |",
        f"| letters | {letters:,}, all 26 occur |",
        f"| symbols with one boundary a name | {letters + len(names):,} |",
        f"| shortest, longest | {min(map(len, names))} and {max(map(len, names))} letters |",
        f"| mean length | {letters / len(names):.2f} letters |",
    ):
        assert row in CARD


def test_the_card_states_licence_and_limits():
    for words in ("CC0 1.0", "from memory", "not a register", "not a sample", "nothing about how common", "ethnicity"):
        assert words in CARD


# Reading names


def written(tmp_path, content):
    path = tmp_path / "some.txt"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("content", [b"anna\nbo\n", b"anna\nbo"])
def test_names_are_read_with_or_without_a_last_line_end(tmp_path, content):
    path = written(tmp_path, content)
    assert read_names(path) == read_names(str(path)) == ["anna", "bo"]


def test_a_file_that_does_not_exist_is_refused(tmp_path):
    path = tmp_path / "none.txt"
    with pytest.raises(FileNotFoundError, match=re.escape(f"{path}: no such file; a text file with one name a line")):
        read_names(path)
    assert not path.exists()


BAD_FILES = {
    "empty": (b"", "", "the file is empty; one name a line is needed"),
    "one blank line": (b"\n", ", line 1", "the line is blank; one name a line is needed"),
    "blank line": (b"anna\n\nbo\n", ", line 2", "the line is blank; one name a line is needed"),
    "blank line at the end": (b"anna\nbo\n\n", ", line 3", "the line is blank; one name a line is needed"),
    "byte-order mark": (b"\xef\xbb\xbfanna\n", ", line 1", "the file starts with a byte-order mark; save it as UTF-8"),
    "CRLF": (b"anna\r\nbo\r\n", ", line 1", "the line ends with a carriage return; save the file with Unix line ends"),
    "CRLF later": (b"anna\nbo\r\n", ", line 2", "the line ends with a carriage return"),
    "CR": (b"anna\rbo\r", ", line 1", "the line ends with a carriage return"),
    "upper case": (b"anna\nBo\n", ", line 2, column 1", "'B' in 'Bo'; only a to z are allowed"),
    "digit": (b"anna\nbo\nr2d\n", ", line 3, column 2", "'2' in 'r2d'; only a to z are allowed"),
    "accent": ("anna\nzoë\n".encode(), ", line 2, column 3", "'ë' in 'zoë'; only a to z are allowed"),
    "another script": ("анна\n".encode(), ", line 1, column 1", "'а' in 'анна'; only a to z are allowed"),
    "Latin-1": ("zoë\n".encode("latin-1"), ", line 1, column 3", "'\ufffd' in 'zo\ufffd'; only a to z are allowed"),
    "UTF-16": ("bo\n".encode("utf-16"), ", line 1, column 1", "only a to z are allowed"),
    "boundary": (b"b.o\n", ", line 1, column 2", "'.' in 'b.o'; only a to z are allowed"),
    "space": (b"anna \n", ", line 1, column 5", "' ' in 'anna '; only a to z are allowed"),
}


@pytest.mark.parametrize("content, place, problem", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_refused_with_its_line(tmp_path, content, place, problem):
    path = written(tmp_path, content)
    with pytest.raises(ValueError) as error:
        read_names(path)
    assert str(error.value).startswith(f"{path}{place}: ") and problem in str(error.value)
    assert path.read_bytes() == content


# The vocabulary


def test_the_vocabulary_is_the_boundary_and_then_the_characters_in_order():
    vocabulary = Vocabulary.of(["cab", "da"])
    assert vocabulary.characters == (".", "a", "b", "c", "d") and len(vocabulary) == 5
    assert vocabulary.encode("dab") == [4, 1, 2] and vocabulary.decode([0, 4, 1]) == ".da"


def test_the_corpus_has_27_symbols(names):
    assert Vocabulary.of(names).characters == tuple("." + string.ascii_lowercase)


@given(st.lists(st.text(string.ascii_lowercase), min_size=1).filter(any))
def test_decoding_undoes_encoding(names):
    vocabulary = Vocabulary.of(names)
    for name in names:
        assert vocabulary.decode(torch.tensor(vocabulary.encode(name), dtype=torch.long)) == name


@pytest.mark.parametrize("name, unknown", [("abz", "z"), ("a.b", "."), ("Ab", "A")])
def test_a_name_with_a_character_outside_the_vocabulary_is_refused(name, unknown):
    message = re.escape(f"{unknown!r} in the name {name!r} is outside the vocabulary 'ab'")
    with pytest.raises(ValueError, match=message):
        VOCABULARY.encode(name)
    with pytest.raises(ValueError, match=message):
        examples(["ab", name], VOCABULARY, 3)


@pytest.mark.parametrize("symbol", [-1, 3, 4, 300])
def test_a_symbol_outside_the_vocabulary_is_not_decoded(symbol):
    with pytest.raises(ValueError, match=f"symbol {symbol} is outside the vocabulary, 0 to 2"):
        VOCABULARY.decode([1, symbol])


@pytest.mark.parametrize("names", [[], [""]])
def test_a_vocabulary_of_nothing_is_refused(names):
    with pytest.raises(ValueError, match="names: there is no name"):
        Vocabulary.of(names)


def test_a_boundary_inside_a_name_is_refused():
    with pytest.raises(ValueError, match=r"names: '\.' marks the boundary"):
        Vocabulary.of(["a.b"])


# Splitting


@given(
    st.lists(st.text("abc", min_size=1), min_size=20, max_size=60, unique=True),
    st.sampled_from([(1.0,), (0.5, 0.5), (0.8, 0.1, 0.1), (0.1, 0.2, 0.3, 0.4), (0.7, 0.2, 0.1)]),
    st.integers(0, 5),
)
def test_parts_are_disjoint_exhaustive_and_of_the_size_asked_for(names, fractions, seed):
    parts = split(names, *fractions, generator=rng.generator(seed, "split"))
    assert sorted(itertools.chain(*parts)) == sorted(names)
    assert len(parts) == len(fractions)
    for part, fraction in zip(parts, fractions, strict=True):
        assert abs(len(part) - fraction * len(names)) <= 1


def test_parts_are_in_random_order_and_the_same_under_one_seed(names):
    a, b, other = (split(names, 0.8, 0.2, generator=rng.generator(s, "split")) for s in (0, 0, 1))
    assert a == b != other
    assert a[0] != sorted(a[0])
    early = sum(name < "m" for name in a[1]) / len(a[1])
    assert early == pytest.approx(sum(name < "m" for name in names) / len(names), abs=0.03)


def test_the_parts_are_the_permutation_of_the_generator():
    order = torch.randperm(10, generator=rng.generator(0, "split")).tolist()
    names = list("abcdefghij")
    assert split(names, 0.3, 0.7, generator=rng.generator(0, "split")) == [
        [names[i] for i in order[:3]],
        [names[i] for i in order[3:]],
    ]


def test_fractions_may_miss_1_by_rounding_and_no_more(names):
    assert len(split(names, 0.7, 0.2, 0.1 + 5e-10, generator=rng.generator(0, "split"))) == 3
    with pytest.raises(ValueError, match="fractions: positive numbers that sum to 1 are needed"):
        split(names, 0.7, 0.2, 0.1 + 5e-9, generator=rng.generator(0, "split"))


@pytest.mark.parametrize("fractions", [(), (0.5,), (0.8, 0.1), (0.8, 0.3), (1.2, -0.2), (1.0, 0.0), (math.nan, 0.5)])
def test_fractions_that_do_not_fit_are_refused(fractions):
    names, g = ["a", "b"], rng.generator(0, "split")
    state = g.get_state()
    with pytest.raises(ValueError) as error:
        split(names, *fractions, generator=g)
    assert str(error.value) == f"fractions: positive numbers that sum to 1 are needed, got {fractions}"
    assert names == ["a", "b"] and torch.equal(g.get_state(), state)


@pytest.mark.parametrize("names, fractions, bad",
    [
        (list("abcd"), (0.9, 0.1), 0.1),
        ([], (1.0,), 1.0),
        (["a"] * 1000, (0.9, 1e-9, 0.1 - 1e-9), "1e-09"),
    ],
)
def test_an_empty_part_is_refused(names, fractions, bad):
    g = rng.generator(0, "split")
    state = g.get_state()
    with pytest.raises(ValueError, match=f"fractions: {bad} of {len(names)} names leaves a part without a name"):
        split(names, *fractions, generator=g)
    assert torch.equal(g.get_state(), state)


# Contexts and targets


def test_contexts_and_targets_by_hand():
    contexts, targets = examples(TINY, VOCABULARY, 2)
    assert contexts.tolist() == [
        *([0, 0], [0, 1], [1, 2]),
        *([0, 0], [0, 2]),
        *([0, 0], [0, 1], [1, 1], [1, 2]),
    ]
    assert targets.tolist() == [1, 2, 0, 2, 0, 1, 1, 2, 0]
    assert contexts.dtype == targets.dtype == torch.int64


@given(st.lists(st.text("ab", max_size=6), min_size=1, max_size=5), st.integers(1, 8))
def test_every_context_is_the_symbols_before_its_target(names, block_size):
    contexts, targets = examples(names, VOCABULARY, block_size)
    assert contexts.shape == (sum(len(n) + 1 for n in names), block_size)
    rows = iter(zip(contexts.tolist(), targets.tolist(), strict=True))
    for name in names:
        for i, (context, target) in zip(range(len(name) + 1), rows, strict=False):
            assert VOCABULARY.decode(context) == ("." * block_size + name[:i])[-block_size:]
            assert VOCABULARY.decode([target]) == (name + ".")[i]


@pytest.mark.parametrize("block_size", [0, -1])
def test_a_block_size_below_one_is_refused(block_size):
    message = f"block_size: at least 1 is needed, got {block_size}"
    with pytest.raises(ValueError, match=message):
        examples(TINY, VOCABULARY, block_size)


def test_no_names_are_refused():
    with pytest.raises(ValueError, match="names: at least one name is needed"):
        examples([], VOCABULARY, 3)


def test_the_corpus_in_three_parts_is_what_its_pieces_give(names, corpus):
    parts = split(names, 0.8, 0.1, 0.1, generator=rng.generator(0, "split"))
    assert corpus.vocabulary == Vocabulary.of(names)
    assert list(map(len, parts)) == [25_600, 3_200, 3_200]
    for part, got in zip(parts, corpus[1:], strict=True):
        assert all(map(torch.equal, examples(part, corpus.vocabulary, 3), got))


def test_a_corpus_of_another_file_block_and_seed(tmp_path):
    path = written(tmp_path, b"".join(b"%c%c\n" % pair for pair in itertools.product(b"abcde", repeat=2)))
    one, other = (data.corpus(4, path=path, seed=seed) for seed in (1, 2))
    assert one.train.contexts.shape == (60, 4) and len(one.vocabulary) == 6
    assert not torch.equal(one.train.targets, other.train.targets)


# Minibatches


def numbered(n, block_size=3):
    return Examples(torch.arange(n * block_size).view(n, block_size), torch.arange(n))


@pytest.mark.parametrize("size, steps", [(1, 3), (5, 1), (5, 256), (5, 257), (5, 600), (2000, 200), (2**18 + 1, 2)])
def test_minibatches_are_those_of_one_draw_a_step(size, steps):
    source, g = numbered(97), batches()
    got = list(minibatches(source, size, steps, generator=batches()))
    assert len(got) == steps
    for batch in got:
        index = torch.randint(97, (size,), generator=g)
        assert torch.equal(batch.contexts, source.contexts[index])
        assert torch.equal(batch.targets, source.targets[index])


@pytest.mark.parametrize("steps", [3, 300])
def test_minibatches_of_several_generators_are_each_replicas_own(steps):
    source = numbered(97)

    def streams():
        return [rng.generator(r, "batches") for r in range(3)]

    together = list(minibatches(source, 5, steps, generator=streams()))
    alone = [list(minibatches(source, 5, steps, generator=g)) for g in streams()]
    assert len(together) == steps
    for k, batch in enumerate(together):
        assert batch.contexts.shape == (3, 5, 3) and batch.targets.shape == (3, 5)
        for r in range(3):
            assert torch.equal(batch.contexts[r], alone[r][k].contexts)
            assert torch.equal(batch.targets[r], alone[r][k].targets)


def test_one_generator_in_a_sequence_keeps_its_leading_axis():
    (batch,) = minibatches(numbered(9), 5, 1, generator=[batches()])
    assert batch.contexts.shape == (1, 5, 3)


def test_minibatches_reach_every_example_about_equally_often():
    drawn = torch.cat([b.targets for b in minibatches(numbered(10), 100, 100, generator=batches())])
    counts = torch.bincount(drawn, minlength=10).double()
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 28  # chi squared, 9 degrees of freedom, 1 in 1000


def test_minibatches_know_their_number_and_go_on_where_they_stopped():
    twice, g = minibatches(numbered(97), 5, 4, generator=batches()), batches()
    assert len(twice) == 4
    expected = [torch.randint(97, (5,), generator=g).tolist() for _ in range(8)]
    assert [b.targets.tolist() for b in itertools.chain(twice, twice)] == expected


@pytest.mark.parametrize(
    "replicas, size, ahead", [(1, 32, 256), (64, 32, 128), (3, 1000, 87), (1, 2**17, 2), (2, 2**18, 1)]
)
def test_a_draw_is_for_256_steps_or_a_quarter_of_a_million_examples(replicas, size, ahead, monkeypatch):
    draw, shapes = torch.randint, []
    monkeypatch.setattr(torch, "randint", lambda n, shape, **k: shapes.append(tuple(shape)) or draw(n, shape, **k))
    iterator = iter(minibatches(numbered(9), size, 1000, generator=[rng.generator(r, "b") for r in range(replicas)]))
    next(iterator)
    assert shapes == [(ahead, size)] * replicas
    iterator.close()


def test_as_many_replicas_as_examples_in_a_minibatch():
    drawn = examples(TINY, VOCABULARY, 2)
    (several,) = minibatches(drawn, 2, 1, generator=[rng.generator(r, "batches") for r in range(2)])
    for r in range(2):
        (alone,) = minibatches(drawn, 2, 1, generator=rng.generator(r, "batches"))
        assert torch.equal(several.contexts[r], alone.contexts)


def test_what_describes_data_cannot_be_changed():
    with pytest.raises(AttributeError, match="cannot assign"):
        VOCABULARY.characters = ()
    with pytest.raises(AttributeError, match="cannot assign"):
        minibatches(examples(TINY, VOCABULARY, 2), 2, 1, generator=batches()).size = 3


def test_a_corpus_takes_its_path_by_name():
    with pytest.raises(TypeError, match="positional argument"):
        data.corpus(3, None)


def test_no_steps_draw_nothing():
    g = batches()
    state = g.get_state()
    assert list(minibatches(numbered(9), 5, 0, generator=g)) == [] and torch.equal(g.get_state(), state)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"size": 0}, "size: at least 1 is needed, got 0"),
        ({"steps": -1}, "steps: 0 or more are needed, got -1"),
        ({"data": numbered(0)}, r"data: targets of shape \(n,\) with n > 0 are needed, got \(0,\)"),
        (
            {"data": Examples(torch.zeros(2, 9, 3), torch.zeros(2, 9))},
            r"data: targets of shape \(n,\) with n > 0 are needed, got \(2, 9\)",
        ),
        (
            {"data": Examples(torch.zeros(3), torch.tensor(1))},
            r"data: targets of shape \(n,\) with n > 0 are needed, got \(\)",
        ),
        ({"generator": []}, "generator: at least one is needed, got an empty sequence"),
    ],
)
def test_minibatches_that_cannot_be_drawn_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        minibatches(**{"data": numbered(9), "size": 5, "steps": 2, "generator": batches()} | change)


def test_examples_are_equal_if_their_numbers_are(corpus):
    assert corpus.dev == Examples(*(x.clone() for x in corpus.dev)) and corpus.dev != corpus.test
    assert corpus.dev != tuple(corpus.dev) and corpus.dev != Examples(*(x[:5] for x in corpus.dev))


@pytest.mark.parametrize("taken", [0, 1, 100, 256, 257, 300])
@pytest.mark.parametrize("stacked", [False, True])
def test_a_loop_that_is_left_early_goes_on_with_the_next_minibatch(taken, stacked, corpus):
    def batches(g):
        return minibatches(corpus.dev, 4, 300, generator=g)

    def streams():
        return [generator(s, "b") for s in range(2)] if stacked else generator(0, "b")

    whole, g = list(batches(streams())), streams()
    iterator = iter(batches(g))
    first = [next(iterator) for _ in range(taken)]
    iterator.close()
    rest = list(batches(g))[: 300 - taken]
    assert all(a == b for a, b in zip([*first, *rest], whole, strict=True))


def test_draws_within_a_loop_are_not_taken_back(corpus):
    g = generator(0, "b")
    iterator = iter(minibatches(corpus.dev, 4, 300, generator=g))
    next(iterator)
    torch.rand(3, generator=g)
    after = g.get_state()
    iterator.close()
    assert torch.equal(g.get_state(), after)
