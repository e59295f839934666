"""Keep what each page says, for pages that show it: a Sphinx domain in its smallest form.

A subclass gives a ``name``, a ``label`` and, if it collects from the doctree, ``process_doc``.
Sphinx saves the data with the environment, begins anew when ``data_version`` changes, and calls what
follows when a page is read again or goes, and when pages were read by other processes.
"""

from sphinx.domains import Domain


class PerPage(Domain):
    initial_data = {"pages": {}}

    @property
    def pages(self) -> dict:
        """{docname: what is kept of the page}"""
        return self.data["pages"]

    def clear_doc(self, docname: str) -> None:
        self.pages.pop(docname, None)

    def merge_domaindata(self, docnames: set[str], otherdata: dict) -> None:
        found = otherdata["pages"]
        self.pages.update({doc: found[doc] for doc in docnames if doc in found})

    def resolve_any_xref(self, *args) -> list:
        return []  # no cross-reference leads here
