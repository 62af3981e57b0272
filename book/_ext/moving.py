"""Give a page with a moving figure the script that redraws it and its style; other pages stay without."""


def load(app, pagename, templatename, context, doctree):
    if '<figure class="moving' in context.get("body", ""):
        app.add_css_file("moving.css")
        app.add_js_file("moving.js", loading_method="defer")


def setup(app):
    app.connect("html-page-context", load)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
