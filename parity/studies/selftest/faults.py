"""Every fault that the self-test plants, and the stage at which each must be caught.

Where two stages see a fault, the expected one is the first in the gates' order (:func:`parity.judge.judge.judge`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial as p

from parity.studies.selftest import inputs, models
from parity.studies.selftest.bench import Bench, Evidence

BAD_INPUT = "bad input"
"""In place of a stage: there is no verdict but one sentence, exit code 2."""
NOWHERE = "nowhere"
"""In place of a stage: nothing is planted, and the verdict must be neither FAIL nor REFUSED."""

# Smaller changes of an epsilon drown in what rounding does. Measured with the tiny model on 96 images: a layer-norm
# epsilon of 1e-5 and 1e-2 leaves the embeddings' median error at 8e-4, 1e-1 makes it 1.4e-3 and 1 makes it 1.2e-2; an
# RMS-norm epsilon of 1e-6 to 1e-3 leaves the median KL at 3e-5, and 1e-2 makes it 5.7e-4.
WRONG_LN_EPSILON = 1.0
WRONG_RMS_EPSILON = 1e-2


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong."""

    name: str
    reality: str
    """What it is like in reality."""
    stage: str
    """Where it must be caught: a gate's stage, BAD_INPUT or NOWHERE."""
    plant: Callable[[Bench], Evidence]
    sentence: str = ""
    """For BAD_INPUT: what the sentence must name."""


FAULTS = (
    Fault("other contract stated", "the app was built before the contract last changed", "provenance",
          inputs.other_contract),
    Fault("other dataset stated", "the phone still has the previous test set", "provenance", inputs.other_dataset),
    Fault("other weights stated", "the phone still has the files of the previous training", "provenance",
          inputs.other_weights),
    Fault("other llama.cpp stated", "the app's llama.cpp was updated", "provenance", inputs.other_llama),
    Fault("KV cache Q4_0, stated", "the app saves memory with a cache type that is not the contract's", "runtime",
          inputs.kv_cache),
    Fault("flash attention off, stated", "the app's build has no flash attention", "runtime",
          inputs.no_flash_attention),
    Fault("other context window, stated", "the app was given another n_ctx", "runtime", inputs.other_window),
    Fault("Q4_0 in Q8_0's place", "a smaller file was shipped under the same name", "runtime", models.coarse),
    Fault("letterbox not Android's", "another version of Pillow decodes JPEG differently", "letterbox", inputs.goldens),
    Fault("JPEG in the PNG's place", "the test set was compressed on its way to the phone", "decoded", inputs.jpeg),
    Fault("resize with LANCZOS", "the specification's filter instead of Android's", "pixels",
          p(inputs.letterboxed, key="resample", values=("lanczos", "android_bilinear"))),
    Fault("resize with an area filter", "OpenCV's INTER_AREA instead of Android's filter", "pixels",
          p(inputs.letterboxed, key="resample", values=("area", "android_bilinear"))),
    Fault("half-pixel offset", "an odd margin is rounded down, Android rounds it up", "pixels",
          p(inputs.letterboxed, key="offset", values=("floor", "round_half_up"))),
    Fault("float64 geometry", "Python's double instead of Kotlin's Float", "pixels",
          p(inputs.letterboxed, key="geometry", values=("float64", "float32"))),
    Fault("EXIF transposed", "a loader turns the photo upright, Android does not", "pixels",
          p(inputs.letterboxed, key="exif", values=("transpose", "ignore"))),
    Fault("BGR", "the bridge reads RGBA words in the wrong order", "pixels", inputs.swapped_channels),
    Fault("shuffled rows", "results are matched by position after a parallel run", "pixels",
          p(inputs.shuffled, hidden=False)),
    Fault("other mean", "CLIP's image_mean in the mmproj", "tiles",
          p(inputs.normalization, key="image_mean", values=inputs.CLIP_MEAN)),
    Fault("other standard deviation", "CLIP's image_std in the mmproj", "tiles",
          p(inputs.normalization, key="image_std", values=inputs.CLIP_STD)),
    Fault("other tile plan", "preproc_image_size of another plan in the mmproj", "tiles", inputs.tile_plan),
    Fault("missing overview", "HF's own processor makes one tile, libmtmd makes two", "tiles",
          inputs.no_overview),
    Fault("extra newline", "the app's prompt ends in a line break", "tokens", inputs.extra_newline),
    Fault("marker as text", "the app uses libmtmd's old marker and leaves the new one in the prompt", "tokens",
          inputs.marker_as_text),
    Fault("other prompt", "the prompt was reworded in the app only", "tokens", inputs.reworded_prompt),
    Fault("labels reordered in the prompt", "the app lists the labels in its own order", "tokens",
          inputs.labels_in_prompt),
    Fault("BOS added", "the GGUF asks for a BOS, and the app lets llama.cpp add it", "tokens", inputs.bos),
    Fault("other vocabulary", "two tokens were swapped between two revisions of the tokenizer", "tokens",
          inputs.vocabulary),
    Fault("a merge missing", "the merges of an older tokenizer file", "tokens", inputs.merges),
    Fault("layer-norm epsilon", "1 instead of 1e-6 in the mmproj", "embeddings",
          p(models.vision_value, key=models.LN_EPSILON, value=WRONG_LN_EPSILON)),
    Fault("stale mmproj", "the vision encoder was not exported again after training", "embeddings",
          models.stale_mmproj),
    Fault("vision rows reordered", "the converter permutes a projection that has no rotary embedding", "embeddings",
          models.vision_rows),
    Fault("vision layers swapped", "tensors are numbered from the other end", "embeddings", models.vision_layers),
    Fault("dropped adapter", "the base model's language part was exported, without the adapter", "logits",
          models.dropped_adapter),
    Fault("language layers swapped", "tensors are numbered from the other end", "logits", models.text_layers),
    Fault("language rows reordered", "the converter permutes the keys' rows twice", "logits", models.text_rows),
    Fault("RMS-norm epsilon", "1e-2 instead of 1e-5 in the GGUF", "logits",
          p(models.text_value, key=models.RMS_EPSILON, value=WRONG_RMS_EPSILON)),
    Fault("rope base", "llama.cpp's default of 10,000 instead of the model's 100,000", "logits",
          p(models.text_value, key="llama.rope.freq_base", value=1e4)),
    Fault("shuffled answers", "results are matched by position, and the hashes are copied from the list", "logits",
          p(inputs.shuffled, hidden=True)),
    Fault("end token lost", "the GGUF's end token is not the one that was trained", "generation", models.lost_end),
    Fault("labels by number", "the app's list of labels starts at another index", "answers", models.labels_by_number),
    Fault("a label is never answered", "the app's grammar lacks a label", "accuracy", models.silent_label),
    Fault("a rare label is never answered", "the same, and too rare to move the accuracy", "classes",
          models.silent_rare_label),
    Fault("worse than the last release", "within the margin of HF, but significantly worse than before", "baseline",
          models.worse_than_before),
    Fault("mislabelled row", "one side was scored against another list of labels", BAD_INPUT, inputs.mislabelled,
          sentence="image "),
    Fault("truncated GGUF", "a download that ended early", BAD_INPUT, inputs.truncated, sentence=".gguf"),
)  # fmt: skip

CONTROLS = (
    Fault("the same pair again", "nothing", NOWHERE, lambda bench: bench.compared(bench.run_candidate())),
    Fault("photos letterboxed rightly", "nothing", NOWHERE, inputs.right_letterbox),
    Fault("KV cache F16 under a contract of F16", "nothing", NOWHERE, inputs.f16_cache_kept),
)
"""What the faults are planted on, with nothing planted."""
