"""One line of the table of ci/peers.sh: subject, what has to be found, exit status and answer of `hammer hunt --json`."""

import json
import sys

subject, expected, status, text = sys.argv[1:]
answer = json.loads(text.strip().splitlines()[-1]) if text.strip() else {}
if "violations" in answer:  # A process died; its culprit was looked for afterwards.
    first = answer["violations"][0]
    oracle, minimal, ops, seconds = first["oracle"], first["ops"], "-", "-"
elif answer.get("found"):
    first = answer["found"]
    oracle, minimal, ops, seconds = first["oracle"], first["minimal"], answer["ops"], f"{answer['seconds']:.2f}"
else:
    oracle, minimal, ops, seconds = "-", "-", answer.get("ops", "-"), f"{answer.get('seconds', 0):.2f}"
ran = status in ("0", "1") and ("ops" in answer or "violations" in answer)
verdict = "NOT RUN" if not ran else "clean" if oracle == "-" else "caught"
good = ran and (verdict if expected == "clean" else oracle) == expected
print(f"{subject:36} {verdict:8} {oracle:18} {minimal!s:>8} {ops!s:>12} {seconds!s:>8}", "" if good else f"expected {expected}")
sys.exit(0 if good else 1)
