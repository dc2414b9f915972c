"""What a verdict is, as data: the model behind ``verdict.json``, its schema and every report.

Made by :mod:`parity.judge.judge`, shown by :mod:`parity.report`. Needs no model library.

Invariants of a :class:`Verdict`, in this order: REFUSED exactly where the gate ``provenance``, ``bundle`` or
``device provenance`` is red; FAIL where another gate is red; INCONCLUSIVE where none is red and one is undecided; PASS
otherwise.
``first_bad_stage`` is the first red gate, or the first undecided one; where it is REFUSED the one that refuses. Every
confusion matrix sums to ``n``.
"""

from typing import Literal

from parity.compare.ladder import Rung
from parity.judge.audit import Stop
from parity.judge.causes import Causes
from parity.judge.notebook import verdict_html
from parity.results import Header
from pipeline.contract import Gate
from pipeline.core.jsonl import Hex
from pipeline.core.settings import Frozen
from pipeline.dataset.split import Split

SCHEMA_VERSION: Literal[6] = 6
"""Of ``verdict.json``."""
Status = Literal["PASS", "FAIL", "INCONCLUSIVE", "REFUSED"]
GateStatus = Literal["green", "red", "undecided", "not measured"]


def images_name(verdict: "Verdict") -> str:
    """``test images``, ``validation images``, or ``images`` where it is unknown which."""
    return f"{verdict.split} images" if verdict.split else "images"


class Worst(Frozen):
    """An image at which a gate measured one of its greatest values."""

    image_id: str
    key: str
    value: float


class GateResult(Frozen):
    """One check's outcome."""

    stage: str
    """``provenance``, ``runtime``, ``letterbox``, ``bundle``, ``decoded``, ``pixels``, ``tiles``, ``tokens``,
    ``embeddings``, ``logits``, ``generation``, ``answers``, ``accuracy``, ``classes``, ``agreement``,
    ``score``, ``baseline``; of a phone that is held against
    the host by a plan: ``device provenance``, ``device runtime``, ``device pixels``, ``device tokens``,
    ``device logits``, ``device answers``, ``audit``, ``device classes``."""
    rung: Rung | None = None
    """Its place on the ladder: decoded S0, pixels S1, tiles S2, tokens S3, embeddings S4, logits S5, generation S6,
    accuracy S7; null for a check that is no part of the ladder."""
    status: GateStatus
    detail: str
    """What was found, with numbers; why, where it was not measured."""
    cause: str = ""
    """One sentence: what most likely made it red; empty where it is green."""
    fix: str = ""
    """One sentence: what to do about it."""
    metric: str = ""
    """What ``value`` is, in words with its unit; empty for a check without a number."""
    value: float | None = None
    """The number that is held against the limit; it is also the smallest limit that would pass."""
    limit: float | None = None
    floor: float | None = None
    """The same number between Hugging Face in float32 and in bfloat16 on the same samples: the noise that no one can
    help. Null where it was not measured or has no meaning."""
    samples: int = 0
    """Images measured."""
    beyond: int = 0
    """Images that are beyond the limit on their own."""
    worst: tuple[Worst, ...] = ()
    """Greatest first; at most five."""

    @property
    def red(self) -> bool:
        """Whether it fails the verdict."""
        return self.status == "red"


class ClassScore(Frozen):
    """One label's scores on one side, 0..1; a score that is 0/0 is 0."""

    label: str
    support: int
    """Images whose truth it is."""
    precision: float
    recall: float
    recall_low: float
    """Lower end of Wilson's 95 % interval; 0 without support."""
    recall_high: float
    """Upper end; 1 without support."""
    f1: float


class Side(Frozen):
    """One side alone."""

    side: str
    correct: int
    accuracy: float
    accuracy_low: float
    """Lower end of Wilson's 95 % interval."""
    accuracy_high: float
    macro_f1: float
    """Mean F1 of the labels that occur as a truth or an answer; 0 where there are none."""
    unanswered: int
    """Answers in which no label was found; they count as wrong."""
    per_class: tuple[ClassScore, ...]
    """In the order of the contract's labels."""
    confusion: tuple[tuple[int, ...], ...]
    """Rows: truth. Columns: answer, in the order of the contract's labels, then no answer."""
    seconds: float
    """What the images took together, as the side timed them (loading not included)."""
    images_per_second: float | None
    """None where the side measured no times."""
    ms_median: dict[str, float]
    """Phase -> median milliseconds an image."""


class Limits(Frozen):
    """What the ladder's numbers may be at most (:mod:`parity.judge.gates.limits`): the median over the images, and one
    image on its own."""

    embeddings: float
    """S4: relative error."""
    embeddings_each: float
    logits: float
    """S5: KL over the vocabulary, nats."""
    logits_each: float
    largest: float
    """S5: largest difference of two logits, standard deviations."""
    largest_each: float
    answer: float | None = None
    """S6, of open answers: the mean KL over an answer's tokens, nats."""
    answer_each: float | None = None


class Difference(Frozen):
    """Candidate's accuracy minus the reference's, in percentage points."""

    points: float
    low: float
    """Lower end of Tango's 95 % interval."""
    high: float
    margin_points: float
    mcnemar_p: float
    """Exact p of "both sides are equally often right"."""
    won: int
    """Images that only the candidate got right."""
    lost: int
    """Images that only the reference got right."""
    p_inferior: float
    """One-sided p of "the candidate is worse by the margin or more" (Tango's score test): non-inferior below 0.025."""
    needed: int | None
    """Images to plan a new run on: the fewest that would show non-inferiority at the discordance seen; null where no
    number would (the candidate is worse by the margin or more)."""


class Flip(Frozen):
    """An image that the sides answer differently."""

    image_id: str
    key: str
    truth: str | None
    reference: str | None
    candidate: str | None
    parted_at: Rung | None
    """The first rung of the ladder at which this image is beyond its limit; null where none is but the answer, or where
    the ladder was not walked."""


class Flips(Frozen):
    """Different answers of one kind."""

    count: int
    examples: tuple[Flip, ...]
    """The first 20 by image id."""


class AllFlips(Frozen):
    """Different answers by what they cost."""

    right_to_wrong: Flips
    """The reference was right, the candidate is wrong or silent."""
    wrong_to_right: Flips
    wrong_to_other_wrong: Flips


class Drift(Frozen):
    """How far the labels' log-probabilities are apart; a number to watch, not a gate."""

    mean: float
    """Mean absolute difference over images and labels, nats."""
    largest: float
    image_id: str
    """Where the largest is."""
    label: str


class RunScore(Frozen):
    """One of several runs of the candidate."""

    name: str
    points: float
    low: float
    high: float
    status: Status


class Runs(Frozen):
    """Several runs of the candidate, judged one by one; the verdict that carries this is the worst of them."""

    runs: tuple[RunScore, ...]
    mean_points: float
    sd_points: float
    unstable: int
    """Images that not all runs answer alike."""
    n: int


class PassRow(Frozen):
    """PASS where at most so many are lost."""

    losses: int
    right: int
    """Pictures of the random order, of those that the host gets right."""
    pictures: int
    """Pictures that the phone has then answered in all."""


class Lost(Frozen):
    """A picture that the host gets right and the phone does not."""

    picture: int
    """How many the phone had answered with it."""
    image_id: str
    key: str
    truth: str
    label: str | None
    """What the phone said; null where it gave no label, as after a crash or a time-out."""


class ClassCheck(Frozen):
    """The pictures of one class that are answered whatever else happens; they can only turn a verdict red."""

    label: str
    planned: int
    """Pictures that the host gets right."""
    answered: int
    lost: int


class Audit(Frozen):
    """A phone's answers to some of the pictures, held against the plan that was made before the first."""

    plan_sha256: Hex
    claim: str
    """What a PASS says, in one sentence."""
    stop: Stop | None
    """The plan's rule that applied first; null where none has so far. FUTILE: more were lost than its rows allow."""
    pictures: int
    """N: that the host answered."""
    planned: int
    """Pictures that the phone may have to answer: the budget."""
    counted: int
    """Pictures answered in the plan's order without a gap, up to the stop."""
    uncounted: int
    """The phone's other rows: beyond a gap or the stop, or not in the plan."""
    right: int
    """Of the random order's pictures that are counted, those that the host gets right."""
    lost: tuple[Lost, ...]
    """Of these, those that the phone gets wrong, in the plan's order: each is a step of the staircase."""
    rows: tuple[PassRow, ...]
    """The PASS line, with the census as the phone answered it."""
    block: int
    """Pictures of all kinds at the start of the random order, on which an early FAIL is tried."""
    wealth: float
    """The greatest that the bet on a FAIL reached; a FAIL at 40."""
    census: int
    census_won: int
    """Census pictures that the phone alone got right, of phone and host."""
    census_lost: int
    class_checks: tuple[ClassCheck, ...]
    device_header: Header


class Verdict(Frozen):
    """All that is known of two sides; see the module's docstring."""

    schema_version: Literal[6] = SCHEMA_VERSION
    name: str
    """Of the contract, or of a check's terms."""
    status: Status
    exit_code: int
    """0 PASS, 1 FAIL, 3 INCONCLUSIVE, 4 REFUSED."""
    headline: str
    """The verdict in one sentence, for whoever ships."""
    first_bad_stage: str | None
    cause: str
    """Of the first red (else undecided) gate; empty on PASS."""
    fix: str
    notes: tuple[str, ...]
    """What weakens the verdict, one sentence each."""
    n: int
    split: Split | None
    """Which of the dataset's images these are; null where the results do not say."""
    labels: tuple[str, ...]
    """Empty where answers are open. Then an answer is right that has the words expected, or those of the reference."""
    gates: tuple[GateResult, ...]
    """In the order in which a picture becomes an answer."""
    gate: Gate
    """What was allowed: the contract's, but for :attr:`overrides`."""
    overrides: tuple[str, ...]
    """What was judged by other limits than the contract's, one sentence each; a gate for release takes none."""
    evidence: dict[str, Hex]
    """``reference``, ``candidate``, ``ladder``, ``baseline``, ``plan``, ``device`` -> SHA-256 of what was judged, as
    far as it was in finished files: what the closing line states, of the baseline that of its canonical JSON, of the
    plan that of its file."""
    limits: Limits | None
    """Those that the gates of S4 and S5 were judged by; null where the ladder was not walked."""
    difference: Difference
    agreement: float
    """Share of images with equal answers; two answers without a label are equal."""
    flips: AllFlips
    label_logprobs: Drift | None
    """None where a side has none; values that are not finite are left out."""
    reference: Side
    candidate: Side
    causes: Causes | None = None
    """What made the outputs diverge, where a check conformed one to the other."""
    runs: Runs | None = None
    """Where more than one run of the candidate was judged."""
    audit: Audit | None = None
    """Where a phone was judged by a plan; all else but the gates is then of the host, which is the candidate."""
    reference_header: Header
    candidate_header: Header

    def _repr_html_(self) -> str:
        """As a notebook shows it."""
        return verdict_html(self)
