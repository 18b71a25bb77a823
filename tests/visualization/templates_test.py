"""Test HTML templates: escaped values, and syntax of CSS and JavaScript that is not replaced."""

import re

import pytest

from vlbert_jax.visualization.templates import Html, Template, escape, join, load_templates


def test_values_are_escaped_unless_they_are_html():
    template = Template("<p class=\"{{kind}}\">{{text}}</p> ${a} {b} $x")
    filled = template.fill(kind='a"b', text=Html("<b>1</b>"))
    assert filled == '<p class="a&quot;b"><b>1</b></p> ${a} {b} $x'
    assert template.fill(kind=1, text="<b>") == '<p class="1">&lt;b&gt;</p> ${a} {b} $x'
    with pytest.raises(KeyError, match="text"):
        template.fill(kind="")


def test_html_fragments_are_joined_to_html():
    assert Html("<b>") + "<" + Html("</b>") == join([Html("<b>"), "<", Html("</b>")]) == "<b>&lt;</b>"
    assert escape(Html("<b>") + "<") == "<b>&lt;"


def test_templates_of_the_report_have_no_line_breaks():
    templates = load_templates("report.html")
    assert templates["paragraph"].template == "<p>{{text}}</p>"
    assert all(template.template and "\n" not in template.template for template in templates.values())
    assert re.search(r'</b> <small>', templates["guess"].template)  # a space within a line is kept
