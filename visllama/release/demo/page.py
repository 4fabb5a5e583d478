"""Build the web page with tabs for captions, a chat and a comparison of models, from gradio's own components.

The functions behind the tabs take the page's values as they were sent (`preprocess=False`), since gradio would decode
an uploaded file itself. So visllama's decoder (`images.decode`) alone reads it, and refuses a picture that is too large
by its header.
"""

from __future__ import annotations

import html

import gradio as gr

from visllama.release.demo.caption_tab import CaptionTab
from visllama.release.demo.chat_tab import ChatTab
from visllama.release.demo.compare_tab import CompareTab
from visllama.release.demo.exhibit import Exhibit

FONTS = ("system-ui", "sans-serif")
CSS = """
.gradio-container {width: 100%; max-width: 60rem !important; margin: 0 auto !important}
.picture img {width: 100%; height: 100%; object-fit: contain}
.talk {display: flex; flex-direction: column-reverse; max-height: 28rem; min-height: 8rem; overflow-y: auto; gap: .6rem}
.talk p {margin: 0; padding: .5rem .8rem; border-radius: .8rem; max-width: 85%; white-space: pre-wrap;
  overflow-wrap: anywhere; border: 1px solid var(--border-color-primary)}
.talk .you {align-self: flex-end; background: var(--color-accent-soft)}
.talk .model {align-self: flex-start; background: var(--background-fill-secondary)}
.talk img {max-width: 10rem; max-height: 10rem; border-radius: .5rem; margin-right: .4rem; image-rendering: auto}
.talk .hint {align-self: center; border: none; color: var(--body-text-color-subdued)}
.caption textarea {font-size: 1.15rem}
.examples .grid-wrap {height: auto; min-height: 0; max-height: none; overflow: visible; padding-top: 1.6rem}
.examples .caption-label {display: none}
"""
HEAD = """<script>
document.addEventListener("paste", event => {
  const files = [...event.clipboardData.files].filter(file => file.type.startsWith("image/"));
  const inputs = [...document.querySelectorAll(".picture input[type=file]")];
  const shown = inputs.find(input => input.closest(".picture").offsetParent !== null);
  if (files.length === 0 || shown === undefined) return;
  const chosen = new DataTransfer();
  chosen.items.add(files[0]);
  shown.files = chosen.files;
  shown.dispatchEvent(new Event("change", {bubbles: true}));
});
</script>"""
"""A script by which a picture can be pasted anywhere on the page; gradio itself has a button for that alone."""


def build_page(exhibit: Exhibit) -> gr.Blocks:
    """Build the whole page as gradio's `Blocks`, without serving it.

    The page has a tab for captions and one for a chat and, if there are several models, one that compares them. gradio
    deletes uploads after ten minutes.

    Args:
        exhibit: The models, examples, uploads and sessions that the tabs share.
    """
    names = exhibit.models.names

    # An upload is deleted after ten minutes: a visitor may take some before the question about it is sent.
    with gr.Blocks(title="visllama", analytics_enabled=False, delete_cache=(60, 600)) as blocks:
        gr.Markdown(f"# visllama\n{html.escape(', '.join(names))}")

        with gr.Tab("Caption"):
            CaptionTab(exhibit).build()
        with gr.Tab("Chat"):
            ChatTab(exhibit).build()
        if len(names) > 1:
            with gr.Tab("Compare"):
                CompareTab(exhibit).build()

        blocks.unload(exhibit.forget)
    return blocks
