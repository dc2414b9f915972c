"""Reports of a verdict, for people and for other programs: HTML, JUnit XML, a job summary, plain text, a JSON Schema.

report.html   one self-contained page (:mod:`parity.report.page`)
junit.xml     one case a gate and a class (:mod:`parity.report.junit`)
summary.md    a GitHub job summary (:mod:`parity.report.summary`)
verdict.txt   what the terminal shows, without colours

Everything is made from saved results; no model library is needed. The schema of ``verdict.json`` is
``verdict.schema.json`` beside this file.
"""
