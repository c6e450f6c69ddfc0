"""A local page on which one image is routed at a balance point that can be moved.

`uploads` reads what users upload, `answers` routes it, `samples` chooses images to start with,
`cards` puts answers into HTML, `page` is the page, and `server` serves it. Only the last two need
Gradio.
"""
