"""How fast layers run: rnnjax beside the other libraries, with the same weights on the same data.

Run:     python -m experiments.throughput
Needs:   the extra "peers" for the other libraries; those that are missing are named and left out.
Files:   cases      which cases there are, and which of them a run takes
         problems   weights, data and the loss of a case, and what a right answer is
         libraries  one file a library: its layer with these weights, in its own ordinary form
         measuring  a case in every library: checked, then timed in turns
         memory     the peak of a process for each library
         limits     how fast the machine could be
         results    the records in results.json, also of earlier runs
         report     tables and Markdown
         charts     the chart of ratios
         command    the command line
"""
