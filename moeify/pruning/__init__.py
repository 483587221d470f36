"""Experts taken out of a mixture: chosen by scores, cut as byte ranges, measured against chance."""
