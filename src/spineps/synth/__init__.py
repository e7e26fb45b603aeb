"""Synthetic spines: numbers (`spec`) -> label map (`labelmap`) -> image (`image`); every step replays from its spec.

The generator is parametric: it carries tables of sizes, no mesh and no scan.  It feeds training, tests and the demo.
"""
