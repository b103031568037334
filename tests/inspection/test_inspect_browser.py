"""
The page of `nexus inspect` in a real browser, opened from the disk: clicks and keys lead to the numbers that the model
computes, the paths are spelled out, and nothing is asked of the network.
"""

import re

import numpy as np
import pytest
import torch
from matplotlib.image import imread

import checkpoints
from nexus_transformers import NexusConfig, NexusForCausalLM
from nexus_transformers.inspection import inspect

pytest.importorskip("selenium")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from browser import Page

pytestmark = pytest.mark.usefixtures("no_pngs")
TEXT = (
    "A class definition is an executable statement. The inheritance list usually gives a list of base classes.\n"
    "Exceptions are a means of breaking out of the normal flow."
)
LAYERS, HEADS, TOKENS = 30, 9, 50


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """30 layers of 9 heads on 50 tokens, fully nested but for one layer: (page, attention maps by layer)."""
    folder = tmp_path_factory.mktemp("deep")
    torch.manual_seed(0)
    config = NexusConfig(
        num_layers=LAYERS,
        num_attention_heads=HEADS,
        hidden_size=72,
        head_dim=8,
        intermediate_size=64,
        num_key_value_heads=3,
        vocab_size=checkpoints.VOCAB_SIZE,
        attention_order=[3] + [2] * (LAYERS - 2) + [1],
        initializer_range=0.25,
    )
    NexusForCausalLM(config).save_pretrained(folder / "model")
    tokenizer = checkpoints.tokenizer()
    tokenizer.save_pretrained(folder / "model")
    ids = tokenizer(TEXT)["input_ids"][:TOKENS]
    result = inspect(folder / "model", tokenizer.decode(ids), folder / "out")
    assert len(result["tokens"]) == TOKENS
    model = NexusForCausalLM.from_pretrained(folder / "model", attn_implementation="eager").eval()
    with torch.no_grad():
        calls = iter(model(torch.tensor([ids]), output_attentions=True).attentions)
    maps = [np.stack([next(calls)[0].numpy() for _ in range(order)]) for order in config.layer_orders]
    return result["page"], maps


def check_numbers(page, maps, layer, head, token):
    """The targets listed per level are the largest weights of the row, with their values."""
    assert len(page.all(".level")) == len(maps[layer])
    for level, weights in enumerate(maps[layer][:, head, token], start=1):
        listed = page.weights(level)
        weights = weights.round(3)
        largest = np.sort(weights[weights >= 0.01])[::-1][:6]
        assert sorted(listed.values(), reverse=True) == pytest.approx(largest, abs=1e-6)
        assert [weights[target] for target in listed] == pytest.approx(list(listed.values()), abs=1e-6)


def test_every_head_is_there_and_a_click_shows_its_numbers(driver, deep):
    file, maps = deep
    page = Page(driver, file)
    assert len(page.all(".cell")) == LAYERS * HEADS
    assert f"{LAYERS} layers of {HEADS} heads, attention order 1 and 2 and 3; {TOKENS} tokens" in page.text("#facts")
    for layer, head in ((0, 0), (17, 4), (29, 8)):
        page.one(f'.cell[data-layer="{layer}"][data-head="{head}"]').click()
        assert page.address.startswith(f"#layer={layer}&head={head}&token=")
        assert page.text("#detail-title").startswith(f"Layer {layer}, head {head}: order {len(maps[layer])}")
        for token in (49, 20):
            page.one(f'.level[data-level="1"] [data-token="{token}"].token').click()
            assert page.address == f"#layer={layer}&head={head}&token={token}"
            check_numbers(page, maps, layer, head, token)
    assert "order 1: it has one level" in page.text("#paths")
    page.check_quiet()


def test_keys_selects_and_the_address_move_the_selection(driver, deep):
    file, maps = deep
    page = Page(driver, file, "#layer=3&head=2&token=9")
    check_numbers(page, maps, 3, 2, 9)
    for key, address in (
        (Keys.ARROW_RIGHT, "#layer=4&head=2&token=9"),
        (Keys.ARROW_DOWN, "#layer=4&head=3&token=9"),
        (".", "#layer=4&head=3&token=10"),
        (Keys.ARROW_LEFT, "#layer=3&head=3&token=10"),
        (Keys.ARROW_UP, "#layer=3&head=2&token=10"),
        (",", "#layer=3&head=2&token=9"),
    ):
        page.press(key)
        assert page.address == address
    check_numbers(page, maps, 3, 2, 9)
    Select(page.one("#layer")).select_by_value("12")
    Select(page.one("#head")).select_by_value("7")
    Select(page.one("#token")).select_by_value("33")
    assert page.address == "#layer=12&head=7&token=33"
    check_numbers(page, maps, 12, 7, 33)
    page.run("location.hash = '#layer=0&head=1&token=5'")
    page.wait_for('.cell[data-layer="0"][data-head="1"][aria-current]')
    check_numbers(page, maps, 0, 1, 5)
    # an address of another page, or typed wrongly, is not followed
    page = Page(driver, file, "#layer=99&head=-1&token=x")
    assert re.fullmatch(r"#layer=\d+&head=\d+&token=\d+", page.address) and "99" not in page.address
    page.press(Keys.ARROW_LEFT * 60)
    assert page.address.startswith("#layer=0&")
    page.check_quiet()


def test_the_first_view_is_where_the_last_token_gains_most(driver, deep):
    file, maps = deep
    page = Page(driver, file)
    gains = np.stack([weights[-1, :, -1] - weights[0, :, -1] for weights in maps])  # (layers, heads, tokens)
    layer, head, target = np.unravel_index(gains.argmax(), gains.shape)
    assert page.address == f"#layer={layer}&head={head}&token={TOKENS - 1}"
    first = page.all("#paths li")[0]
    assert (first.get_attribute("data-query"), first.get_attribute("data-target")) == (str(TOKENS - 1), str(target))
    assert f"+{gains.max():.3f}" in first.text
    change = [np.abs(weights[-1] - weights[0]).sum(-1).mean(-1) / 2 for weights in maps]
    listed = page.all("#most-changed button")
    assert [float(button.text.split()[-1]) for button in listed] == pytest.approx(
        np.sort(np.concatenate(change))[::-1][:8], abs=0.0051
    )
    listed[1].click()
    layer, head = (int(listed[1].get_attribute(f"data-{name}")) for name in ("layer", "head"))
    assert page.text("#detail-title").startswith(f"Layer {layer}, head {head}: order {len(maps[layer])}, ")
    assert float(page.text("#detail-title").split()[-2]) == pytest.approx(change[layer][head], abs=0.0051)
    # the largest gains of a head, and the way to them
    button = page.all("#gains button")[0]
    query, target = (int(button.get_attribute(f"data-{name}")) for name in ("query", "target"))
    gains = maps[layer][-1, head] - maps[layer][0, head]
    assert gains[query, target] == pytest.approx(gains.max(), abs=1e-4)
    button.click()
    check_numbers(page, maps, layer, head, query)
    assert page.all("#paths li")[0].get_attribute("data-target") == str(target)
    page.check_quiet()


def test_it_is_legible_with_50_tokens_and_30_layers(driver, deep, tmp_path):
    page = Page(driver, deep[0], "#layer=7&head=3&token=40")
    overflow = "return [document.documentElement.scrollWidth, window.innerWidth]"
    wide, window = page.run(overflow)
    assert wide <= window, "the page does not scroll sideways"
    box = page.run("const b = document.getElementById('overview-box'); return [b.scrollWidth, b.clientWidth]")
    assert box[0] <= box[1], "all layers are seen at once"
    small = page.one('.cell[data-layer="7"][data-head="3"] canvas')
    before = small.rect["height"]
    page.one("#side").send_keys(Keys.END)
    assert before < small.rect["height"] == 96, "the small maps can be made larger"
    page.wait_for('.cell[data-layer="7"][data-head="3"][data-drawn="yes"]')
    canvases = page.all("#maps-box canvas")
    assert len(canvases) == 3
    assert canvases[0].rect["y"] == canvases[1].rect["y"], "the levels are side by side"
    assert page.run("return largeMaps.map((map) => [map.cell, map.font, map.every])") == [[11, 10, 1]] * 3
    assert page.run("return Math.min(...[...document.querySelectorAll('.token')].map((t) => t.offsetHeight))") >= 18
    page.driver.set_window_size(1920, 1000)
    assert page.run("return largeMaps[0].cell") > 11, "more room is used"
    page.driver.set_window_size(500, 900)
    wide, window = page.run(overflow)
    assert wide <= window
    page.driver.save_screenshot(str(tmp_path / "narrow.png"))
    assert imread(tmp_path / "narrow.png")[..., :3].std() > 0.05
    page.check_quiet()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_maps_are_coloured_by_weight(driver, deep, kept, scheme):
    """In both colour schemes, the large maps and the small ones."""
    file, maps = deep
    maps = [kept(weights) for weights in maps]
    layer, head = 7, 3
    page = Page(driver, file, f"#layer={layer}&head={head}&token=40")
    page.set_scheme(scheme)
    style = "return getComputedStyle(document.documentElement).getPropertyValue(arguments[0])"
    empty, full, future = (
        np.array([int(page.run(style, f"--{name}").strip()[at : at + 2], 16) for at in (1, 3, 5)])
        for name in ("map", "ink", "future")
    )
    assert (empty.sum() > full.sum()) == (scheme == "light")
    cell, margin = page.run("return [largeMaps[0].cell, largeMaps[0].margin]")
    first, last, _ = page.all("#maps-box canvas")
    strong = np.unravel_index(maps[layer][1, head].argmax(), (TOKENS, TOKENS))
    for canvas, weights in ((first, maps[layer][0, head]), (last, maps[layer][1, head])):
        for i, j in (strong, (30, 12), (13, 13), (48, 2)):
            colour = page.pixel(canvas, margin + cell * j + cell // 2, margin + cell * i + cell // 2)[:3]
            assert colour == pytest.approx(empty + (full - empty) * weights[i, j] ** 0.5, abs=1.5)
        assert page.pixel(canvas, margin + cell * 40 + 5, margin + cell * 10 + 5)[:3] == future.tolist()
    small = page.wait_for(f'.cell[data-layer="{layer}"][data-head="{head}"][data-drawn="yes"] canvas')
    width, side = int(small.get_attribute("width")), int(small.get_attribute("height"))
    assert width == 2 * side + 1
    span = TOKENS / side
    for x, y in ((2, 9), (0, side - 1), (side // 2, side - 2)):
        rows = slice(int(y * span), int(np.ceil((y + 1) * span)))
        columns = slice(int(x * span), int(np.ceil((x + 1) * span)))
        for level, left in ((0, 0), (1, side + 1)):
            largest = maps[layer][level, head][rows, columns].max()
            colour = page.pixel(small, left + x, y)[:3]
            assert colour == pytest.approx(empty + (full - empty) * largest**0.5, abs=1.5)


def test_a_cell_is_read_out_under_the_pointer_and_a_click_chooses_its_row(driver, deep):
    file, maps = deep
    page = Page(driver, file, "#layer=0&head=3&token=40")
    cell, margin = page.run("return [largeMaps[0].cell, largeMaps[0].margin]")
    canvas = page.all("#maps-box canvas")[1]
    i, j = np.argwhere(maps[0][:, 3].min(0) > 0.02)[-1].tolist()
    page.run("arguments[0].scrollIntoView({block: 'center'})", canvas)
    centre = [(margin + cell * (index + 0.5)) - canvas.size["width"] / 2 for index in (j, i)]
    ActionChains(driver).move_to_element_with_offset(canvas, *map(round, centre)).perform()
    words = ["<0.01" if weight < 0.0095 else f"{weight:.3f}" for weight in maps[0][:, 3, i, j]]
    assert re.findall(r"level \d: ([<\d.]+)", page.text("#readout")) == words and len(set(words)) == 3
    ActionChains(driver).click().perform()
    assert page.address == f"#layer=0&head=3&token={i}"
    check_numbers(page, maps, 0, 3, i)
    page.check_quiet()


@pytest.mark.slow
def test_the_two_hop_path_is_spelled_out(driver, induction, tmp_path):
    """The second "fog" looks at "owl", whose key was gathered from the first "fog"."""
    result = inspect(induction(order=2, steps=800)[0], "red cat fog owl blue dog sun rose fog", tmp_path / "out")
    page = Page(driver, result["page"])
    assert page.address.endswith("&token=8")
    first = page.all("#paths li")[0]
    assert (first.get_attribute("data-query"), first.get_attribute("data-target")) == ("8", "3")
    (line,) = first.find_elements(By.CSS_SELECTOR, '.chain[data-branch="key"]')
    assert line.get_attribute("data-tokens") == "2"
    sentence = " ".join(line.text.split())
    assert re.match(r"fog ?8 looks at owl ?3, whose key was gathered from fog ?2 \(\d\.\d\d, head \d of", sentence)
    path = result["paths_of_last_token"][0]
    key = next(chain for chain in path["chains"] if chain[0]["branch"] == "key")[0]
    assert f"({key['weight']:.2f}, head {key['head']} of level 1)" in sentence
    assert sentence.endswith(f"credit +{key['credit']:.1f}")
    assert first.text.splitlines()[0].endswith(f"+{path['gain']:.3f}")
    assert page.weights(1).get(3, 0) < 0.3 < 0.6 < page.weights(2)[3]
    assert "No gates: every nested layer is fully nested" in page.text("#gates")
    page.check_quiet()


def test_closed_gates_are_said_and_open_ones_drawn(driver, tmp_path):
    torch.manual_seed(0)
    config = NexusConfig(
        attention_order=2,
        num_layers=3,
        num_attention_heads=2,
        hidden_size=32,
        intermediate_size=32,
        vocab_size=checkpoints.VOCAB_SIZE,
        inner_gate=True,
        initializer_range=0.3,
    )
    model = NexusForCausalLM(config)
    checkpoints.tokenizer().save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    page = Page(driver, inspect(tmp_path / "model", "An exception is raised.", tmp_path / "out")["page"])
    assert "All gates are closed" in page.text("#notice")
    assert "The gates of this layer are closed" in page.text("#paths")
    assert "No head changes" in page.text("#most-changed")
    assert page.text("#gains") == "None."
    page.check_quiet()

    # Letters that run from right to left turn neither a name around nor the arrow between two.
    places = page.run("""
        data.tokens[0] = data.tokens[1] = "\u05d0\u05d1";
        const line = make("p", {}, named(0), " → ", named(1));
        document.body.append(line);
        return [...line.querySelectorAll(".name, sub")].map((each) => each.getBoundingClientRect().x);
    """)
    assert places == sorted(places) and len(places) == 4

    for value, said in ((0.0, "computes standard attention. All gates were set to 0"), (1e-4, "set to 0.0001")):
        page = Page(driver, inspect(tmp_path / "model", "An exception.", tmp_path / "out", gates=value)["page"])
        assert said in page.text("#notice")
        assert ("No head changes by 0.005 or more" in page.text("#most-changed")) is (value != 0)

    values = {name: 0.1 * number - 0.2 for number, name in enumerate(model.gates(), start=1)}
    for name, value in values.items():
        model.gates()[name].data.fill_(value)
    model.save_pretrained(tmp_path / "model")
    page = Page(driver, inspect(tmp_path / "model", "An exception is raised.", tmp_path / "out")["page"])
    assert not page.one("#notice").is_displayed()
    bars = page.all("#gates rect")
    shown = {(int(bar.get_attribute("data-layer")), bar.get_attribute("class")): bar for bar in bars}
    assert len(shown) == len(values) == 6
    scale = None
    for name, value in values.items():
        bar = shown[int(name.split(".")[2]), name.split(".")[-1].split("_")[0]]
        assert float(bar.get_attribute("data-value")) == pytest.approx(value, abs=1e-6)
        if abs(value) > 0.05:
            scale = scale or bar.size["height"] / abs(value)
            assert bar.size["height"] == pytest.approx(scale * abs(value), rel=0.05), "as high as it says"
    page.one("#gates summary").click()
    listed = [float(row.text.split()[-1]) for row in page.all("#gate-table tbody tr")]
    assert listed == pytest.approx([*values.values()], abs=1e-4)
    page.check_quiet()
    page = Page(driver, inspect(tmp_path / "model", "An exception.", tmp_path / "out", gates=0.5)["page"])
    assert "All gates were set to 0.5 for this page" in page.text("#notice")
