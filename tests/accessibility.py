"""What axe, a checker of accessibility, says of a page in a browser."""


def serious(page):
    """The serious and critical violations: rule, help, and the first elements that break it."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        (rule["id"], rule["help"], [node["html"] for node in rule["nodes"][:3]])
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]
