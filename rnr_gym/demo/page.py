"""The page: an image, a balance point, and what the routers make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from rnr_gym.data import photos
from rnr_gym.demo import cards
from rnr_gym.demo.answers import RUNS
from rnr_gym.demo.contest import STEP, Contest, Subject
from rnr_gym.demo.samples import EACH, Sample

TITLE = "rnr-gym demo"
CSS = Path(__file__).with_name("page.css")
FIRST_BUDGET = 0.3
THUMBNAIL = (160, 160)
FONTS = ("system-ui", "sans-serif")
MONOSPACE_FONTS = ("ui-monospace", "monospace")
"""Of the user's machine; Gradio's own themes would load others."""
BLUE = gr.themes.Color(
    c50="#eaf4fa",
    c100="#d0e6f3",
    c200="#a1cde6",
    c300="#6db2d8",
    c400="#3a95c7",
    c500="#0072b2",
    c600="#00659e",
    c700="#005585",
    c800="#00456c",
    c900="#003552",
    c950="#002438",
)

INTRODUCTION = """# One image, two routers

A router decides, layer by layer, how much of a network an image gets. PPO and DQN were trained for
the same network. Choose an image, move the budget, and compare what they do.
"""
SAMPLES = "**Images of CIFAR-10**, from easy to hard"
NO_SAMPLES = """There are no CIFAR-10 images on this machine, so there are no samples: upload an
image of your own. `rnr-gym data cifar10` fetches them (170 MB); then start the demo again.
"""
UPLOAD = f"**Your own image** ({photos.NAMES})"
UPLOAD_CAPTION = "Your image: its central square, as the network sees it. Its class is not known."
NO_IMAGE = "<p class='rnr-caption'>Upload an image to see what the routers do with it.</p>"
NOTES = """**Budget**: the mean compute of a router over many images (those of `route`), as a share
of the plain network's MACs. A router spends less on one image and more on another. Each router
reaches the budget at its own trade-off λ.

**Compute** counts the glance, the exits and the router itself, so it can exceed 1.

**Time** was measured on this machine when the image was chosen: the median of {runs} runs with this
one image by this path. Larger batches, other machines and programs that run meanwhile change it.

**Glance**: a very small network that runs first, and whose answer can do. Images of CIFAR-10 are
called easy where it is sure, right or wrong, and hard where it is not.

The network has ten classes and answers with one of them whatever it is shown: {classes}. It sees
the central square of an image, at 32 × 32 pixels. Uploads are deleted as soon as they are read.
"""


def build(contest: Contest, samples: list[Sample]) -> gr.Blocks:
    """The page, ready to be served.

    Args:
        contest: the routers.
        samples: images to start with; may be empty.
    """

    def show(subject: Subject | None, budget: float) -> str:
        if subject is None:
            return NO_IMAGE
        return cards.page_part(contest, subject, contest.position(budget))

    def on_sample(budget: float, selected: gr.SelectData) -> tuple[Subject, str, str]:
        subject = _of_sample(contest, samples[selected.index])
        return subject, "", show(subject, budget)

    def on_upload(
        file: str, subject: Subject | None, budget: float
    ) -> tuple[None, Subject | None, str, str]:
        message = ""
        try:
            subject = _of_upload(contest, Path(file))
        except photos.RefusedImage as refused:
            message = cards.refusal(str(refused))
        # The first value empties the field, for the next file.
        return None, subject, message, show(subject, budget)

    # Before anyone has chosen: a hard one, with which the budget matters.
    first = _of_sample(contest, samples[-EACH]) if samples else None

    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        subject = gr.State(first)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                gallery = None
                if samples:
                    gr.Markdown(SAMPLES)
                    gallery = gr.Gallery(
                        [_thumbnail(sample) for sample in samples],
                        show_label=False,
                        columns=EACH,
                        height="auto",
                        allow_preview=False,
                        buttons=[],
                        format="png",
                        elem_id="rnr-samples",
                    )
                else:
                    gr.Markdown(NO_SAMPLES)
                gr.Markdown(UPLOAD)
                upload = gr.File(show_label=False, height=110, elem_id="rnr-upload")
                message = gr.HTML(elem_id="rnr-message")

            with gr.Column(scale=3, min_width=320):
                slider = gr.Slider(
                    minimum=contest.budgets[0],
                    maximum=contest.budgets[-1],
                    value=FIRST_BUDGET,
                    step=STEP,
                    label="Budget: mean compute, as a share of the plain network",
                    buttons=[],
                    elem_id="rnr-budget",
                )
                answers = gr.HTML(show(first, FIRST_BUDGET), elem_id="rnr-answers")
        gr.Markdown(NOTES.format(runs=RUNS, classes=", ".join(contest.classes)))

        # One at a time, or times would be measured while something else runs.
        shared: dict[str, Any] = {
            "show_progress": "hidden",
            "concurrency_limit": 1,
            "concurrency_id": "routers",
            "api_visibility": "private",
        }
        if gallery is not None:
            gallery.select(on_sample, slider, [subject, message, answers], **shared)
        upload.upload(
            on_upload, [upload, subject, slider], [upload, subject, message, answers], **shared
        )
        # While the slider moves faster than answers come, only its last place counts.
        slider.input(show, [subject, slider], answers, trigger_mode="always_last", **shared)
    return page


def theme() -> gr.Theme:
    """Blue as the one accent, and only fonts that the machine has."""
    return gr.themes.Default(
        primary_hue=BLUE,
        secondary_hue=BLUE,
        font=FONTS,
        font_mono=MONOSPACE_FONTS,
    )


def _of_sample(contest: Contest, sample: Sample) -> Subject:
    return contest.subject(sample.image, sample.label, f"Sample: {sample.caption}.")


def _of_upload(contest: Contest, file: Path) -> Subject:
    """The image of a file, which is deleted."""
    try:
        image = photos.read_image(file)
    finally:
        file.unlink(missing_ok=True)
    _, height, width = contest.backbone.image_shape
    pixels = photos.network_input(image, (height, width))
    return contest.subject(pixels, None, UPLOAD_CAPTION)


def _thumbnail(sample: Sample) -> tuple[Image.Image, str]:
    """A sample with its pixels as squares, and its difficulty."""
    pixels = np.moveaxis(sample.image, 0, -1)  # (C, H, W) -> (H, W, C)
    enlarged = Image.fromarray(pixels).resize(THUMBNAIL, Image.Resampling.NEAREST)
    return enlarged, sample.difficulty
