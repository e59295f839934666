"""Let Lighthouse judge four pages of the built site; ``make lighthouse``.

Serves _build/html as a project's pages are served and prints a Markdown table for CONTRIBUTING: scores
as Lighthouse gives them for a slow phone, and what the page weighs as sent. The exit status is 1 when
a score is below 95. Arguments: the folder of Lighthouse's npm installation.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from browser import FLAGS, MISSING, PREFIX, find, serve
from loader import ROOT

LEAST = 95
PAGES = {
    "front page": "index.html",
    "chapter": "chapters/resnet.html",
    "notebook": "notebooks/resnet.html",
    "search": "search.html?q=residual",
}
CATEGORIES = ("performance", "accessibility", "best-practices", "seo")
# Our server speaks HTTP/1.1 without encryption on this machine only; the pages' host decides that.
SKIPPED = ("is-on-https", "redirects-http", "uses-http2")


def judge(program: Path, address: str) -> dict:
    command = [
        str(program),
        address,
        "--quiet",
        "--output=json",
        f"--only-categories={','.join(CATEGORIES)}",
        f"--skip-audits={','.join(SKIPPED)}",
        f"--chrome-flags=--headless {' '.join(FLAGS)}",
    ]
    environment = {**os.environ, "CHROME_PATH": find()}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=180)
    if result.returncode:
        sys.exit(f"Lighthouse failed at {address}:\n{result.stderr}")
    return json.loads(result.stdout)


def weights(report: dict) -> tuple[float, float]:
    """kB of document, styles, scripts and fonts, and of images, as they were sent."""
    requests = report["audits"]["network-requests"]["details"]["items"]
    images = sum(r["transferSize"] for r in requests if r.get("resourceType") == "Image")
    return (sum(r["transferSize"] for r in requests) - images) / 1000, images / 1000


def complaints(report: dict) -> list[str]:
    """The audits that cost points, named with their categories."""
    found = []
    for name in CATEGORIES:
        for reference in report["categories"][name]["auditRefs"]:
            audit = report["audits"][reference["id"]]
            if reference["weight"] and audit["score"] is not None and audit["score"] < 0.9:
                found.append(f"{name}: {audit['title']} {audit.get('displayValue', '')}".strip())
    return found


def main(folder: Path) -> int:
    site = ROOT / "_build" / "html"
    if not find():
        sys.exit(MISSING)
    if not (site / "index.html").is_file():
        sys.exit("there is no site in _build/html; run: make html")
    program, failed = folder / "node_modules" / ".bin" / "lighthouse", []
    print(
        "| page | performance | accessibility | best practices | SEO | LCP s | CLS | kB | images kB |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    with serve(site) as root:
        for name, page in PAGES.items():
            report = judge(program, root + page)
            scores = [round(100 * report["categories"][c]["score"]) for c in CATEGORIES]
            paint, shift = (
                report["audits"][audit]["numericValue"]
                for audit in ("largest-contentful-paint", "cumulative-layout-shift")
            )
            text, images = weights(report)
            cells = [
                name,
                *scores,
                f"{paint / 1000:.1f}",
                f"{shift:.3f}",
                f"{text:.0f}",
                f"{images:.0f}",
            ]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
            if min(scores) < LEAST:
                failed.append(f"{PREFIX}{page}: " + "; ".join(complaints(report)))
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: lighthouse.py FOLDER_OF_THE_INSTALLATION")
    sys.exit(main(Path(sys.argv[1])))
