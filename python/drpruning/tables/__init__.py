"""Tables with one set of cells and several writers: terminal, HTML, Markdown, LaTeX."""
