"""How good masks are against a reference: ``spineps evaluate`` and its parts.

:mod:`metrics` measures two label volumes, :mod:`instances` matches and names, :mod:`coarse` and :mod:`numbering` bring
different label systems together, :mod:`scan` does one scan, :mod:`pairs`, :mod:`run` and :mod:`summary` many.
"""
