"""A local page on which one image is routed at a balance point that can be moved.

`samples` has images to start with, `contest` lets the routers answer
(`answers`), `cards` and `chart` put that into HTML, `page` is the page and `server` serves it. Only
the last two need Gradio.
"""
