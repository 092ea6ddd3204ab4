"""How results are shown: a text table, a Markdown document, a picture."""
