"""What each library of recurrent layers can do, and what it cannot, with the evidence.

Run:     python -m experiments.features
Needs:   flax, dm-haiku, equinox, keras and torch (the extra "peers"); those that are missing are
         named and left out.
Expect:  two tables in Markdown: what is about recurrence, and what surrounds it. Every word in
         them has its evidence: a line of code that is run here and now, or a page that says it.
         Where a library has learned something since, or has dropped it, the run fails and names
         library and feature. With --sources the pages are listed as well.
"""
