"""The page of the app, made with Gradio: the board on the left, a tab for each model on the right, attention below."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes import Default

from vlbert_jax.detector.detect import Detector
from vlbert_jax.visualization.templates import Html, escape, join, load_templates
from vlbert_jax.web import scene as scenes
from vlbert_jax.web.models import Reply, ServedModel
from vlbert_jax.web.scene import Scene

PAIRED = 4  # number of the image of the example gallery that makes a pair with the example scene
SESSIONS = 20  # open pages whose scene is kept
FOLDER = Path(__file__).parent
TEMPLATES = load_templates(str(FOLDER / "page.html"))


def build_page(models: Sequence[ServedModel], finder: Detector | None) -> gr.Blocks:
    """Return the page.

    Args:
        models: A tab each, in this order.
        finder: The detector that finds the regions of an image, or None for a grid.
    """
    example, texts = scenes.example_scene(finder)
    needs_gallery = any(model.takes_second or model.searches for model in models)
    gallery = scenes.example_gallery(finder) if needs_gallery else []
    with gr.Blocks(title="vlbert_jax", analytics_enabled=False) as page:
        gr.HTML(TEMPLATES["title"].fill(), elem_classes="title")
        scene = gr.State(example)
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                board = make_board(example)
                with gr.Row():
                    reset = gr.Button("Reset the regions", size="sm")
                    restart = gr.Button("Show the example", size="sm")
            with gr.Column(scale=6, min_width=320), gr.Tabs():
                tabs = [make_tab(model, models, texts.get(model.kind, []), gallery) for model in models]
        attention = gr.HTML(elem_classes="attention")

        # A change of the scene empties every answer, because it was about another scene.
        shown = [scene, board, attention, *(part for tab in tabs for part in (tab.reply, tab.answer))]

        def change(function: Callable[..., Scene]) -> Callable:
            def run(*arguments: Any) -> list[Any]:
                changed = function(*arguments)
                return [changed, scenes.board_value(changed), "", *[None, ""] * len(tabs)]

            return functools.wraps(function)(run)

        def open_image(event: gr.EventData) -> Scene:
            return scenes.open_dropped(str(event.name), str(event.data), finder)

        def draw_box(now: Scene, event: gr.EventData) -> Scene:
            return scenes.draw_box(now, event.corners)

        def delete_box(now: Scene, event: gr.EventData) -> Scene:
            return scenes.delete_box(now, int(event.row))

        for event, function, given in (
            (board.open_image, open_image, None),
            (board.draw_box, draw_box, scene),
            (board.delete_box, delete_box, scene),
            (reset.click, scenes.reset_boxes, scene),
            (restart.click, lambda: example, None),
        ):
            event(readable(change(function)), given, shown, show_progress="hidden")
        for tab in tabs:
            tab.connect(scene, board, attention, finder)
    return page


def serve(page: gr.Blocks, host: str, port: int | None) -> str:
    """Start the server in a thread and return the address of the page.

    Args:
        page: The page.
        host: Address of the network interface.
        port: Port, or None for the first free one from 7860.

    Raises:
        OSError: The port is in use, or none is free.
    """
    _, address, _ = page.queue().launch(
        server_name=host,
        server_port=port,
        css_paths=FOLDER / "page.css",
        theme=Default(primary_hue="teal"),
        footer_links=[],
        state_session_capacity=SESSIONS,
        ssr_mode=False,
        share=False,
        inline=False,
        inbrowser=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    return address


def make_board(scene: Scene) -> gr.HTML:
    """Return the board of a scene; its events are open_image, draw_box and delete_box."""
    return gr.HTML(scenes.board_value(scene), **_files("board"), elem_id="board")


def _files(name: str) -> dict[str, str]:
    """Return the template, the style and the script of a component."""
    files = dict(html_template="html", css_template="css", js_on_load="js")
    return {field: (FOLDER / f"{name}.{suffix}").read_text("utf-8") for field, suffix in files.items()}


class Tab:
    """The tab of a model: its text, its answer and its button for attention, and its images next to the scene."""

    def __init__(self, model: ServedModel, label: str, texts: Sequence[str], gallery: Sequence[Scene]):
        self.model = model
        registered, asks = model.registered, model.option.capitalize()
        several = model.searches and not model.searches_with_image
        with gr.Tab(label) as self.tab:
            notice = TEMPLATES["notice"].fill(text=model.notice) if model.notice else Html("")
            about = TEMPLATES["model"].fill(name=model.name, help=registered.help, notice=notice)
            gr.HTML(about, elem_classes="model")
            self.text = gr.Textbox(
                texts[0] if texts else "", label=f"{asks}, or several, one in each line" if several else asks,
                lines=2 if several else 1, max_lines=8 if several else 3, visible=registered.takes_text,
            )  # fmt: skip
            self.choices = gr.Textbox("", label="Choices, one in each line", lines=4, visible=registered.takes_choices)
            with gr.Row(visible=len(texts) > 1, elem_classes="examples"):
                for text in texts:
                    example = gr.Button(text, size="sm", min_width=80)
                    example.click(functools.partial(str, text), None, self.text, show_progress="hidden")
            with gr.Row():
                asking = "Order the texts" if several else "Ask" if registered.takes_text else "Describe the image"
                first = dict(variant="primary", elem_classes="ask")
                self.ask = gr.Button(asking, visible=not model.searches_with_image, **first)
                self.order = gr.Button("Order the images below", visible=model.searches, **first)
                self.look = gr.Button(
                    "Show where each word looks", visible=model.shows_attention, elem_classes="look"
                )
            self.answer = gr.HTML(elem_classes="reply")
            self.reply = gr.State(None)
            # The second image of a pair, or the gallery that is searched.
            shown = gallery if model.searches else gallery[PAIRED : PAIRED + 1] if model.takes_second else []
            self.images = gr.State(shown)
            if shown:
                gr.HTML(TEMPLATES["images" if model.searches else "second"].fill(), elem_classes="model")
                self.shelf = gr.HTML(self._shelf_value(shown), **_files("shelf"), elem_classes="images")

    def _shelf_value(self, images: Sequence[Scene], lines: dict[int, str] | None = None) -> dict[str, Any]:
        return scenes.shelf_value(images, self.model.searches, lines)

    def connect(self, scene: gr.State, board: gr.HTML, attention: gr.HTML, finder: Detector | None) -> None:
        """Connect the text and the buttons with the scene, the board and the place of the attention page."""
        model = self.model

        def lines_of(text: str) -> list[str]:
            return [line.strip() for line in text.split("\n") if line.strip()]

        def ask(now: Scene, text: str, choices: str, images: Sequence[Scene]) -> list[Any]:
            if model.searches:
                reply = model.rank_texts(now, lines_of(text))
            else:
                reply = model.ask(now, text, lines_of(choices), images[0] if model.takes_second else None)
            return [reply, answer_html(reply), scenes.board_value(now, reply.marks), ""]

        def order(now: Scene, text: str, images: Sequence[Scene]) -> list[Any]:
            if len(lines_of(text)) > 1:
                raise ValueError("images are ordered by one text; leave one line")
            lines, warnings = model.order_images(now, text.strip(), images)
            reply = Reply(text, ["The images are in order, the best first."], {}, warnings, "")
            return [answer_html(reply), self._shelf_value(images, lines)]

        def open_images(event: gr.EventData) -> list[Any]:
            opened = scenes.open_gallery(event.files, finder)
            opened = opened if model.searches else opened[:1]
            return [opened, self._shelf_value(opened), None, ""]

        def look(now: Scene, reply: Reply | None) -> Html:
            if reply is None:
                raise ValueError("there is no answer to look into; ask first")
            return TEMPLATES["attention"].fill(page=str(self.model.attention(now, reply)))

        def open_tab(now: Scene, reply: Reply | None) -> list[Any]:
            return [scenes.board_value(now, reply.marks if reply else None), ""]

        # The board and the attention are about the answer of the open tab.
        self.tab.select(open_tab, [scene, self.reply], [board, attention], show_progress="hidden")
        asked = [scene, self.text, self.choices, self.images]
        answered = [self.reply, self.answer, board, attention]
        gr.on([self.ask.click, self.text.submit], readable(ask), asked, answered, show_progress_on=self.answer)
        self.look.click(readable(look), [scene, self.reply], attention)
        if model.searches or model.takes_second:
            found = [self.answer, self.shelf]
            self.order.click(readable(order), [scene, self.text, self.images], found, show_progress_on=self.answer)
            opened = [self.images, self.shelf, self.reply, self.answer]
            self.shelf.open_images(readable(open_images), None, opened, show_progress="hidden")


def make_tab(
    model: ServedModel, models: Sequence[ServedModel], texts: Sequence[str], gallery: Sequence[Scene]
) -> Tab:
    """Return the tab of a model, named after what it does, and after the model too where several do that."""
    same = [other for other in models if other.label == model.label]
    return Tab(model, model.label if len(same) == 1 else f"{model.label}: {model.name}", texts, gallery)


def answer_html(reply: Reply) -> Html:
    """Return the answers as HTML."""
    lines = join(TEMPLATES["line"].fill(text=line) for line in reply.lines)
    warnings = join(TEMPLATES["warning"].fill(text=warning) for warning in reply.warnings)
    return TEMPLATES["reply"].fill(text=reply.text, lines=lines, warnings=warnings)


def readable(function: Callable) -> Callable:
    """Return a function whose errors of the library become messages on the page."""

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (ValueError, OSError) as error:
            line = " ".join(str(error).split())
            raise gr.Error(escape(line), print_exception=False) from None

    return run
