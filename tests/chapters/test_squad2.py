"""The reader, the measures, the statistics and the guessers of notebooks/squad2.py."""

import json
import math
import random
import string
from collections import Counter

import pytest
from scipy.stats import mannwhitneyu

from loader import definitions
from workbench import reading

squad2 = definitions("squad2")

CONTEXT = "Zoë's café opened in 1907. Its 🍰 costs five crowns."


def asked(question="Q", answers=(), context=CONTEXT, id="q"):
    """A question; an answer is given by its text and stands where that is first found."""
    places = [(text, context.index(text)) for text in answers]
    return squad2.Question(id, "T", context, question, places)


def as_set(*paragraphs):
    """A set in the form of the files, from (context, qas)."""
    return {
        "version": "v2.0",
        "data": [
            {"title": f"T{i}", "paragraphs": [{"context": context, "qas": qas}]}
            for i, (context, qas) in enumerate(paragraphs)
        ],
    }


# ---- the file ------------------------------------------------------------------------------------


def test_a_file_is_read_in_order_with_titles_and_characters(tmp_path):
    qas = [
        {
            "id": "a",
            "question": "When?",
            "is_impossible": False,
            "answers": [
                {"text": "1907", "answer_start": 21},
                {"text": "in 1907", "answer_start": 18},
            ],
        },
        {
            "id": "b",
            "question": "Why?",
            "is_impossible": True,
            "answers": [],
            "plausible_answers": [{"text": "1907", "answer_start": 21}],
        },
    ]
    old = [{"id": "c", "question": "Who?", "answers": [{"text": "I", "answer_start": 0}]}]
    path = tmp_path / "set.json"
    path.write_text(json.dumps(as_set((CONTEXT, qas), ("I am.", old))), encoding="utf-8")
    assert squad2.read(path) == [
        squad2.Question("a", "T0", CONTEXT, "When?", [("1907", 21), ("in 1907", 18)]),
        squad2.Question("b", "T0", CONTEXT, "Why?", []),
        squad2.Question("c", "T1", "I am.", "Who?", [("I", 0)]),
    ]


def test_what_is_written_is_one_line_of_ascii_and_comes_back(tmp_path):
    made = as_set((CONTEXT, [reading.as_question("a", "When?", [])]))
    path = squad2.written(made, tmp_path / "made.json")
    assert path == tmp_path / "made.json"
    assert path.read_bytes().isascii() and b"\n" not in path.read_bytes()
    assert squad2.read(path) == [squad2.Question("a", "T0", CONTEXT, "When?", [])]


def test_a_file_of_another_form_names_the_file_and_what_to_do(tmp_path):
    path = tmp_path / "other.json"
    for text in ("[]", "{}", "<html>no</html>", '{"data": [{"title": "T"}]}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"other\.json .*form of SQuAD.*fetch it again"):
            squad2.read(path)


def test_faults_are_answers_that_stand_elsewhere_and_ids_that_come_twice():
    good = asked(answers=("1907", "five crowns"))
    assert squad2.faults([good, good._replace(id="r")]) == []
    assert squad2.faults([good, good]) == ["q: a second question has this id"]
    moved = good._replace(answers=[("1907", 20), ("five crowns", 39)])
    assert squad2.faults([moved]) == ["q: '1907' expected at 20, not ' 190'"]


def test_the_sets_of_our_own_have_no_faults_and_are_drawn_by_their_seed():
    one, again, other = (squad2.drawn("test", 30, n) for n in (1, 1, 2))
    assert one == again != other
    assert len(one) == 30 and not squad2.faults(one)
    unlike = squad2.drawn("test", 30, 1, wording="new")
    assert [q.context for q in unlike] == [q.context for q in one]
    assert all(a.question != b.question for a, b in zip(unlike, one))


def test_the_full_profile_asks_for_the_original_files(monkeypatch, tmp_path):
    path = squad2.written(reading.generated("train", 50, seed=0), tmp_path / "f.json")
    called = []
    monkeypatch.setattr(squad2.workbench, "PROFILE", "full")
    monkeypatch.setattr(squad2.downloads, "place", lambda *what: called.append(what) or path)
    few = squad2.drawn("train", 5, 0)
    assert len(few) == 5 and {q.id for q in few} < {q.id for q in squad2.read(path)}
    assert few == squad2.drawn("train", 5, 0) != squad2.drawn("train", 5, 1)
    squad2.drawn("test", 5, 0)
    base = "https://rajpurkar.github.io/SQuAD-explorer/dataset/"
    for what, name, begin in (
        (called[0], "train-v2.0.json", "68dcfbb971bd3e96"),
        (called[-1], "dev-v2.0.json", "80a5225e94905956"),
    ):
        place, addresses, sha256 = what
        assert place == f"SQuAD2/{name}" and addresses == [base + name]
        assert sha256.startswith(begin) and len(sha256) == 64


def test_rows_have_the_form_of_the_hub_by_both_ways(tmp_path):
    qas = [
        reading.as_question("a", "When?", [{"text": "1907", "answer_start": 21}]),
        reading.as_question("b", "Why?", []),
    ]
    made = as_set((CONTEXT, qas), ("I am.", [reading.as_question("c", "Who?", [])]))
    path = squad2.written(made, tmp_path / "made.json")
    rows = [squad2.as_row(question) for question in squad2.read(path)]
    assert rows[0] == {
        "id": "a",
        "title": "T0",
        "context": CONTEXT,
        "question": "When?",
        "answers": {"text": ["1907"], "answer_start": [21]},
    }
    batch = {name: [a[name] for a in made["data"]] for name in ("title", "paragraphs")}
    columns = squad2.flattened(batch)
    assert rows == [dict(zip(columns, row)) for row in zip(*columns.values())]
    pytest.importorskip("datasets")
    assert rows == squad2.by_datasets(path, tmp_path / "cache").to_list()


# ---- the measures --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "expected", "exact", "f1"),
    [
        ("The U.S. dollar", "us dollar", 1, 1),
        ("an apple a day", "apple day", 1, 1),
        ("theatre", "atre", 0, 0),
        ("in 1907", "1907", 0, 2 / 3),
        ("x x y", "x y y z", 0, 4 / 7),
        ("the", "", 1, 1),
        ("", "1907", 0, 0),
        ("1907", "", 0, 0),
        ("", "", 1, 1),
        ("x y", "y x", 0, 1),
    ],
)
def test_measures_on_cases_by_hand(found, expected, exact, f1):
    assert squad2.exact(found, expected) == exact
    assert squad2.f1(found, expected) == pytest.approx(f1)


def f1_by_pairs(a, b):
    """Precision and recall over words that are crossed out one by one."""
    left = list(b)
    common = [w for w in a if w in left and not left.remove(w)]
    if not a and not b:
        return 1.0
    if not common:
        return 0.0
    precision, recall = len(common) / len(a), len(common) / len(b)
    return 2 / (1 / precision + 1 / recall)


def test_measures_of_random_words_are_those_of_crossing_out():
    draw = random.Random(0)
    for _ in range(500):
        a, b = ([draw.choice("xyz") for _ in range(draw.randrange(5))] for _ in "ab")
        marked = " the ".join(w.upper() + draw.choice(string.punctuation) for w in a)
        assert squad2.f1(marked, " ".join(b)) == pytest.approx(f1_by_pairs(a, b))
        assert squad2.exact(marked, " ".join(b)) == float(a == b)


def test_of_several_answers_the_one_that_fits_best_counts():
    question = asked(answers=("five crowns", "crowns"))
    assert squad2.best(squad2.exact, "crowns", question) == 1
    assert squad2.best(squad2.f1, "ten crowns", question) == pytest.approx(2 / 3)
    assert squad2.best(squad2.exact, "", question) == 0
    assert squad2.best(squad2.exact, "", asked()) == 1
    assert squad2.best(squad2.f1, "crowns", asked()) == 0


# ---- the statistics ------------------------------------------------------------------------------


def test_words_openings_and_sentences():
    assert squad2.words("How many, 1907?") == ["how", "many", "1907"]
    assert squad2.opening("How many towers?") == "how many"
    assert squad2.opening("How many towers?", 1) == "how"
    text = "One. Two: three? Four"
    assert [text[a:b] for a, b in squad2.sentences(text)] == ["One. ", "Two: ", "three? ", "Four"]


def test_the_likest_sentence_shares_most_words_with_the_question():
    context = "A bell rings. The bell of the tower rings at noon. It is old."
    spans = squad2.sentences(context)
    question = asked("When does the bell of the tower ring?", ("noon",), context)
    assert [squad2.shared(question, span) for span in spans] == [1, 4, 0]
    assert squad2.likest_span(question) == spans[1]
    assert squad2.likest_span(asked("Why?", (), context)) == spans[0]
    assert squad2.in_likest(question)
    assert not squad2.in_likest(asked("When does the bell of the tower ring?", ("old",), context))
    first = asked("When does the bell of the tower ring?", ("A bell",), context)
    assert not squad2.in_likest(first)
    behind = asked("Is it old of age?", ("It",), context)
    assert squad2.in_likest(behind)


def test_statistics_of_four_questions():
    context = "A bell rings. It is a very old bell."
    questions = [
        asked("Is it old?", ("very",), context),
        asked("Is it new?", ("a very old bell",), context),
        asked("What rings?", ("A bell rings",), context),
        asked("Who rings?", (), context),
    ]
    assert squad2.statistics(questions) == {
        "questions": 4,
        "without an answer": 1 / 4,
        "answers of one word": 1 / 3,
        "answers of more than three": 1 / 3,
        "in the sentence most like the question": 1.0,
        "openings of two words": 3,
    }


def test_known_share_counts_first_answers():
    before = [asked(answers=("1907", "five crowns")), asked()]
    later = [asked(answers=("five", "1907")), asked(answers=("1907",)), asked()]
    assert squad2.known_share(later, before) == 1 / 2
    assert squad2.known_share(later, before[1:]) == 0


# ---- the guessers --------------------------------------------------------------------------------


def trained():
    return [
        asked("When did it open?", ("1907",)),
        asked("When did they open?", ("1907",)),
        asked("When did we close?", ("five",)),
        asked("When did I?"),
        asked("Whose cake?", ("Zoë",)),
    ]


def test_answers_are_counted_by_opening():
    found = squad2.answers_by_opening(trained())
    assert found["when did"] == Counter({"1907": 2, "five": 1})
    assert found["whose cake"] == Counter({"Zoë": 1})
    assert not found["who"]


def test_guessers_read_what_they_say():
    assert squad2.no_answer("When did it open?", CONTEXT) == ""
    commonest = squad2.Commonest(trained())
    assert commonest("When did it close?", "") == "1907"
    assert commonest("Who?", CONTEXT) == ""
    known = squad2.Known(trained())
    assert known("When did it close?", CONTEXT) == "1907"
    assert known("When did it close?", "At FIVE, or six.") == "five"
    assert known("When did it close?", "fivefold 19071") == ""
    assert known("Who?", CONTEXT) == ""


def test_only_the_commonest_answers_are_looked_for(monkeypatch):
    many = [asked("When did it?", (f"{i}",), f"{i}") for i in range(501)]
    known = squad2.Known(many)
    assert known("When did it?", "499") == "499"
    assert known("When did it?", "500") == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1907", "number"),
        ("GQ", "capitals"),
        ("Euro", "name"),
        ("US Dollar", "name"),
        ("oil", "else"),
    ],
)
def test_shapes(text, expected):
    assert squad2.shape(text) == expected


def test_the_first_phrase_of_the_shape_that_is_not_in_the_question():
    guess = squad2.FirstOfShape(trained())
    text = "In 1850 Anna Bell sold 1,200 cakes to Ben."
    assert squad2.PHRASE.findall(text) == ["In", "1850", "Anna Bell", "1,200", "Ben"]
    assert guess("When did it open?", text) == "1850"
    assert guess("When did 1850 end?", text) == "1,200"
    assert guess("Whose cake is In doubt?", text) == "Anna Bell"
    assert guess("Who sold?", text) == "In"
    assert guess("When did it open?", "Never.") == ""


def test_of_shapes_the_one_with_most_answers_is_wanted():
    known = [asked("Who is it?", ("A B",), "A B"), asked("Who is it?", ("Anna",), "Anna")]
    known += [asked("Who is it?", (f"{n}",), f"{n}") for n in (7, 7, 7)]
    assert squad2.FirstOfShape(known)("Who is it?", "Ben, 8") == "8"


def test_scores_are_means_over_all_and_over_both_kinds():
    questions = [asked(answers=("five crowns",)), asked(answers=("1907",)), asked()]
    found = squad2.scores(lambda question, context: "crowns", questions)
    assert found == pytest.approx(
        {
            "exact, all": 0,
            "f1, all": 2 / 9,
            "exact, answer": 0,
            "f1, answer": 1 / 3,
            "exact, none": 0,
            "f1, none": 0,
        }
    )
    found = squad2.scores(squad2.no_answer, questions)
    assert found["exact, all"] == found["f1, all"] == pytest.approx(1 / 3)
    assert found["exact, none"] == 1 and found["exact, answer"] == 0


def test_a_guesser_is_given_question_and_paragraph():
    questions = [asked("five crowns", ("five crowns",)), asked("no")]
    assert squad2.scores(lambda q, c: q if q in c else "", questions)["exact, all"] == 1


# ---- told from the question ----------------------------------------------------------------------


def test_weights_are_logarithms_of_shares_with_one_added():
    known = [
        asked("Was it never old old?"),
        asked("Was it never new?"),
        asked("Was it old?", ("1907",)),
    ]
    suspicion = squad2.Suspicion(known)
    assert suspicion.weight("never") == pytest.approx(math.log((3 / 4) / (1 / 3)))
    assert suspicion.weight("old") == pytest.approx(math.log((2 / 4) / (2 / 3)))
    assert suspicion.weight("unheard") == pytest.approx(math.log((1 / 4) / (1 / 3)))
    total = suspicion.weight("never") + suspicion.weight("old")
    assert suspicion("Never old, never?") == pytest.approx(total)


def test_the_area_is_the_statistic_of_mann_and_whitney():
    draw = random.Random(0)
    values = [draw.randrange(6) for _ in range(60)]
    kinds = [draw.random() < 0.4 for _ in values]
    none = [v for v, kind in zip(values, kinds) if kind]
    some = [v for v, kind in zip(values, kinds) if not kind]
    wanted = mannwhitneyu(none, some).statistic / (len(none) * len(some))
    assert squad2.area(values, kinds) == pytest.approx(wanted)
    assert squad2.area([2, 1], [True, False]) == 1
    assert squad2.area([1, 2], [True, False]) == 0


def test_reading_is_needed_where_a_second_phrase_has_the_answers_shape():
    text = "In 1850 Anna sold 12 cakes to GQ."
    assert squad2.readable(asked("When?", ("1850",), text))
    assert not squad2.readable(asked("When were 12 sold?", ("1850",), text))
    assert not squad2.readable(asked("What?", ("GQ",), text))
