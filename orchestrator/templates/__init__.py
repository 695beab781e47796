"""Templates that administrators edit: finding, rendering and checking them.

    find.py     which file it is, and everything that it extends or includes
    render.py   template and values -> text; every value is quoted, whatever it holds
    quoting.py  how a value is written: a shell word, a directive, a comment, JSON
    shell.py    where in a batch file a value stands (in quotes, a comment, a directive)
    yamltext.py the same for a manifest
    check.py    what a batch file must not lose: signal, append mode, requeue, supervisor, shape

A backend's `prepare` does

    template = find_for("slurm", SLURM_TEMPLATE, job.slurm)
    rendered = render(template, values)    # text, template_id, sha256

`submit` freezes the template (`with_frozen`): its text lies in resolved.json, as `frozen` of the
`slurm:` block, and `find_for` takes it from there. So a later submission of the same run, by a
controller or by `resume`, is made from the same text whatever the site's file says by then;
`resume --job` looks for the template anew. Slurm's own requeue keeps the batch text anyway.

Everything but find.py is pure. jinja2 is imported when a template is read, never before.
"""
