"""The check of pages in a browser finds what is wrong with them."""

from browser import faults_of, needs_chromium

PLANTED = """<!DOCTYPE html>
<link rel="stylesheet" href="https://style.example/page.css">
<style>@font-face { font-family: x; src: url(https://font.example/x.woff) } p { font-family: x }
</style>
<p>text</p>
<img src="gone.png">
<img src="https://image.example/a.png" loading="lazy" style="margin-top: 9000px">
<div style="width: 500px">wide</div>
<script>fetch("https://script.example/").catch(() => 0)</script>"""


@needs_chromium
def test_faults_of_a_page_are_found(tmp_path):
    (tmp_path / "bad &.html").write_text(PLANTED)
    (tmp_path / "good.html").write_text('<!DOCTYPE html><p>text<a href="https://a.example">b</a>')
    faults = faults_of(tmp_path, ["bad &.html", "good.html"])
    assert not [fault for fault in faults if "good" in fault]
    requested = ("style.example/page.css", "font.example/x.woff", "image.example/a.png")
    for width in (400, 1400):
        found = [fault for fault in faults if f"at {width} px" in fault]
        for part in (*requested, "script.example/"):
            assert any("it requests" in fault and part in fault for fault in found), part
        for image in ("gone.png", "image.example/a.png"):
            assert any(f"{image} does not load" in fault for fault in found), image
        assert any("it overflows by" in fault for fault in found) == (width == 400)
