"""Draws the example input images: ``python -m diffusers_helper.gradio.examples.draw``.

A shape is a list of polygons in final pixels, most of them written as ``"x,y x,y ..."`` text. A
canvas rasterises shapes at ``SCALE`` times the final size and shrinks the picture once at the end.
"""

from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageFilter

SCALE = 4
Shape = list[np.ndarray]


def rows(text: str) -> np.ndarray:
    """Parses points; one that ends in ``!`` counts twice, which makes a corner in a curve."""
    words = [word for word in text.split() for _ in range(1 + word.endswith("!"))]
    return np.array([[float(v) for v in word.rstrip("!").split(",")] for word in words])


def smooth(line: np.ndarray, closed: bool) -> np.ndarray:
    """Turns control points into a curve, by corner cutting."""
    for _ in range(5):
        ahead = np.roll(line, -1, axis=0)
        pairs = np.stack([0.75 * line + 0.25 * ahead, 0.25 * line + 0.75 * ahead], axis=1)
        line = (pairs if closed else pairs[:-1]).reshape(-1, line.shape[1])
    return line


def polygon(text: str) -> Shape:
    """Straight-edged parts, one per ``;``."""
    return [rows(part) for part in text.split(";")]


def blob(text: str) -> Shape:
    """Curved closed parts, one per ``;``."""
    return [smooth(rows(part), closed=True) for part in text.split(";")]


def limb(text: str) -> Shape:
    """Curved strokes along ``"x,y,radius ..."``, one per ``;``."""
    shape: Shape = []
    for part in text.split(";"):
        line = rows(part)
        line = smooth(np.concatenate([line[:1], line, line[-1:]]), closed=False)
        way = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(line[:, :2], axis=0).T))])
        steps = np.linspace(0, way[-1], int(way[-1] / 0.75) + 2)
        for x, y, r in zip(*(np.interp(steps, way, column) for column in line.T), strict=True):
            shape += ellipse(x, y, r, r)
    return shape


def box(left: float, top: float, right: float, bottom: float) -> Shape:
    """An upright rectangle."""
    return [np.array([(left, top), (right, top), (right, bottom), (left, bottom)], dtype=float)]


def ellipse(x: float, y: float, rx: float, ry: float) -> Shape:
    """An upright ellipse."""
    turn = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    return [np.stack([x + rx * np.cos(turn), y + ry * np.sin(turn)], axis=1)]


def move(shape: Shape, dx: float, dy: float, sx: float = 1, sy: float = 1) -> Shape:
    """The shape, scaled about the origin and then shifted."""
    return [part * (sx, sy) + (dx, dy) for part in shape]


class Canvas:
    """A picture that shapes are painted on; ``sun`` points to where its light comes from."""

    def __init__(self, width: int, height: int, sun: tuple[float, float]) -> None:
        self.size, self.sun = (width, height), sun
        self.image = Image.new("RGB", (width * SCALE, height * SCALE))

    def paint(
        self,
        shape: Shape,
        *colors: str,
        blur: float = 0,
        opacity: float = 1,
        clip: Shape | None = None,
        cut: Shape | None = None,
        light: bool = False,
    ) -> None:
        """Paints a shape with a gradient of colors from top to bottom.

        ``cut`` is taken away before the blur, ``clip`` bounds the result, and ``light`` adds the
        color to what is there instead of covering it.
        """
        corners = np.concatenate(shape) * SCALE
        low, high = corners.min(0), corners.max(0)
        left, top = (int(v) for v in np.maximum(low - 3 * blur * SCALE - 2, 0))
        far = np.minimum(high + 3 * blur * SCALE + 2, self.image.size)
        right, bottom = (int(v) for v in far)
        if right <= left or bottom <= top:
            return

        def raster(parts: Shape) -> Image.Image:
            mask = Image.new("L", (right - left, bottom - top))
            for part in parts:
                outline = (part * SCALE - (left, top)).ravel().tolist()
                ImageDraw.Draw(mask).polygon(outline, fill=255)
            return mask

        mask = raster(shape)
        if cut:
            mask = ImageChops.subtract(mask, raster(cut))
        if blur:
            mask = mask.filter(ImageFilter.GaussianBlur(float(blur * SCALE)))
        if clip:
            mask = ImageChops.multiply(mask, raster(clip))
        at = (np.arange(top, bottom) - low[1]) / max(high[1] - low[1], 1) * (len(colors) - 1)
        stops = np.array([ImageColor.getrgb(color) for color in colors])
        ramp = np.stack([np.interp(at, range(len(stops)), part) for part in stops.T], axis=1)
        layer = Image.fromarray(ramp.round().astype(np.uint8)[:, None])
        layer = layer.resize(mask.size, Image.Resampling.NEAREST)
        if light:
            layer = ImageChops.screen(layer, self.image.crop((left, top, right, bottom)))
        self.image.paste(layer, (left, top), mask.point(lambda value: round(value * opacity)))

    def form(self, shape: Shape, *colors: str, shade: str, shine: str, depth: float = 6) -> None:
        """Paints a round shape: dark on the side away from the light, bright on the lit rim."""
        self.paint(shape, *colors)
        for color, reach, blur in ((shade, 1, 0.7), (shine, -0.4, 0.25)):
            rest = move(shape, depth * reach * self.sun[0], depth * reach * self.sun[1])
            self.paint(shape, color, blur=depth * blur, opacity=0.7, clip=shape, cut=rest)

    def glow(self, x: float, y: float, radius: float, color: str, opacity: float) -> None:
        """Adds a soft round light."""
        half = radius / 2
        self.paint(ellipse(x, y, half, half), color, blur=half, opacity=opacity, light=True)

    def grass(self, rng: Random, count: int, top: float, ground: Shape, *colors: str) -> None:
        """Scatters blades of grass below ``top``, on the ground."""
        for _ in range(count):
            x, y = rng.uniform(0, self.size[0]), rng.uniform(top, self.size[1] + 12)
            h, lean = rng.uniform(7, 20), rng.uniform(-6, 8)
            blade = limb(f"{x},{y},1.3 {x + lean / 4},{y - h / 2},1 {x + lean},{y - h},.3")
            self.paint(blade, rng.choice(colors), clip=move(ground, 0, -8))

    def tree(self, rng: Random, x: float, y: float, size: float, *tones: str) -> None:
        """A round tree whose foot is at ``x, y``; its ``tones`` go from the shadow to the sun."""
        shadow = ellipse(x - size * 0.3, y, size * 0.9, size * 0.13)
        self.paint(shadow, "#1c4a3c", blur=size / 12, opacity=0.5)
        trunk = f"{x},{y},{size / 9} {x},{y - size * 0.5},{size / 14} {x},{y - size},{size / 20}"
        self.paint(limb(trunk), "#8a5a3f", "#5b3b33")
        y -= 1.2 * size
        crown = ellipse(x, y, 0.66 * size, 0.62 * size)
        for turn in np.arange(9) * 0.7:
            r = size * rng.uniform(0.24, 0.36)
            crown += ellipse(x + 0.56 * size * np.cos(turn), y + 0.52 * size * np.sin(turn), r, r)
        self.paint(crown, tones[0])
        for k, tone in enumerate(tones[1:], 1):
            leaves: Shape = []
            for turn in np.arange(26) * 2.4:
                reach, r = size * rng.uniform(0.1, 0.96 - 0.14 * k), size * rng.uniform(0.07, 0.16)
                u = x + 0.1 * k * size * self.sun[0] + reach * np.cos(turn)
                v = y + 0.12 * k * size * self.sun[1] + reach * np.sin(turn)
                leaves += ellipse(u, v, r, r * 0.85)
            self.paint(leaves, tone, clip=crown, opacity=0.85)

    def save(self, path: Path) -> None:
        """Shrinks the picture and writes it, without low bits that cost bytes and go unseen."""
        small = np.asarray(self.image.resize(self.size, Image.Resampling.LANCZOS))
        Image.fromarray(small & np.array([254, 255, 254], np.uint8)).save(path, optimize=True)


def draw_person() -> Canvas:
    """A woman in a long coat by a lake at dusk."""
    c, rng = Canvas(544, 704, sun=(1, -0.1)), Random(7)
    c.paint(box(0, 0, 544, 412), "#262a58", "#4a3f7d", "#8b5592", "#dd7d86", "#ffb98a", "#ffe0ac")
    for _ in range(34):
        x, y, r = rng.uniform(0, 544), rng.uniform(0, 150), rng.uniform(0.5, 1.1)
        c.paint(ellipse(x, y, r, r), "#fff3e0", opacity=1 - y / 180)
    c.glow(400, 376, 300, "#ff9c5a", 0.55)
    c.glow(400, 376, 120, "#ffd98c", 0.6)
    c.paint(ellipse(400, 374, 31, 31), "#fffbe6", "#ffe39a")
    for x, y, r in rows("70,216,80 446,172,84 486,270,96 52,300,70 360,112,60"):
        for dx, dy, size in rows("0,0,1 .35,-.06,.5 -.3,-.05,.6 .1,.07,.7"):
            cloud = ellipse(x + dx * r, y + dy * r, r * size, r * size * 0.07)
            c.paint(cloud, "#ffc9a8", "#e5839a", blur=2.2, opacity=0.6)
    far = polygon(
        "0,350 60,318 110,338 180,292 240,334 300,316 350,352 430,364 544,318 544,411 0,411"
    )
    near = blob(
        "-40,340! 40,340 110,372 190,360 280,400 360,404 500,362 600,350! 600,411! -40,411!"
    )
    c.paint(far, "#96629a", "#eda394")
    c.paint(near, "#54437c", "#a8688e")
    lake = box(0, 410, 544, 704)
    c.paint(lake, "#ffd9a6", "#f39c88", "#b1658f", "#5d4684", "#2f2f63")
    for hill, color in ((far, "#c07c96"), (near, "#6d4b85")):
        c.paint(move(hill, 0, 738, sy=-0.8), color, blur=3, opacity=0.55, clip=lake)
    for k in range(30):
        y, reach = 414 + k * 5.4 + rng.uniform(-1, 1), rng.uniform(0.4, 1.15)
        glint = ellipse(400 + rng.uniform(-9, 9), y, (30 - 0.4 * k) * reach, 1 + k * 0.04)
        c.paint(glint, "#fff0bd", opacity=0.9 - k * 0.025)
    for _ in range(40):
        x, y, r = rng.uniform(0, 544), rng.uniform(430, 640), rng.uniform(12, 40)
        c.paint(ellipse(x, y, r, 0.8), "#ffd2b0", opacity=0.22)
    shore = blob("-40,600! 80,606 190,622 300,640 420,618 480,596 600,580! 600,760! -40,760!")
    c.paint(shore, "#3b3163", "#1d1a3d", "#141230")
    c.paint(shore, "#ffad8a", blur=2, opacity=0.7, clip=shore, cut=move(shore, 0, 5))
    c.paint(polygon("196,650 262,650 190,720 60,720"), "#0d0b25", blur=7, opacity=0.6)
    c.grass(rng, 230, 624, shore, "#6a4d7c", "#4a3c70", "#3a3263")

    hair = ("#6b3c40", "#452535", "#33203a")
    back = "212,170,30 196,206,26 176,240,20 152,262,13 118,272,2;206,200,22 192,240,22 140,296,2"
    c.paint(limb(f"{back};236,180,20 246,230,14 238,262,6"), *hair)
    strands = limb("196,180,2 180,230,2 128,266,.5;200,210,2 184,252,2 146,290,.5")
    c.paint(strands, "#a4605a", blur=0.8, opacity=0.6)
    c.paint(limb("204,520,15 203,580,12 202,632,10;240,520,15 244,632,10"), "#2a2850", "#1d1b3c")
    boot = blob("190,600! 214,600! 216,640 220,652 206,660 184,656 188,636")
    boots = boot + move(boot, 42, 0)
    c.form(boots, "#7a4440", "#4a2938", shade="#2b1a30", shine="#ffb184", depth=5)
    body = blob(
        "178,252 204,240 236,240 262,252 270,300 260,352 272,430 300,546! 262,556 224,554 186,558 "
        "146,546! 166,430 176,352 168,300"
    )
    blue = {"shade": "#172a55", "shine": "#ff9c5a"}
    c.form(body, "#4d97a0", "#2f7485", "#234f6d", "#20365c", **blue, depth=10)
    folds = "188,370,3 168,552,9;206,376,2 200,556,8;250,372,2 276,552,7;226,250,4 224,352,3"
    c.paint(limb(folds), "#16294c", blur=3, opacity=0.5, clip=body)
    c.paint(limb("227,352,1 228,450,1 232,560,1.4"), "#152447", opacity=0.8, clip=body)
    c.paint(limb("176,350,6 218,355,6.5 262,348,6"), "#2b6678", "#1f4a66", clip=body)
    arms = blob(
        "196,250 174,248 162,280 155,330 150,368 162,400 173,424! 198,390! 184,378 176,352 184,310 "
        "200,276;244,250 264,248 280,280 288,322 293,364 281,396 270,422! 246,388! 262,376 268,350 "
        "260,310 246,276"
    )
    for arm in ([part] for part in arms):
        c.paint(arm, "#13234a", blur=5, opacity=0.55, clip=body)
        c.form(arm, "#4d97a0", "#2f7485", "#28607a", **blue, depth=9)
    c.paint(limb("173,424,2.4 198,390,1.8;270,422,2.4 246,388,1.8"), "#173a58")

    neck = limb("220,206,13 220,244,15")
    c.paint(neck, "#dd9479", "#c97c6c")
    face = blob("188,172 191,196 204,218 223,229 240,217 249,196 251,166 236,142 204,142")
    c.paint(move(face, -2, 7), "#9c4f55", blur=4, opacity=0.7, clip=neck)
    c.form(face, "#fbcba6", "#eeaa88", shade="#c86f6b", shine="#ffe7c0", depth=9)
    for x in (211, 236):
        c.paint(ellipse(x, 203, 7, 4.5), "#ee7f73", blur=3, opacity=0.6, clip=face)
        c.paint(ellipse(x, 190, 3, 3.9), "#3a2030")
        c.paint(ellipse(x + 1, 188.6, 0.9, 1), "#ffffff")
        lash = f"{x - 5},190,.5 {x - 2},185.6,1 {x + 3},185.6,1 {x + 5},188,.6"
        c.paint(limb(f"{lash};{x - 6},180,.8 {x},176.6,1.4 {x + 6},179,.7"), "#3a2030")
    c.paint(limb("226,190,.4 228.5,199,.8 225,201,.7"), "#c86f62", blur=0.3, opacity=0.9)
    c.paint(blob("217,208.5! 222,207 225,208 228,207 232,208.5! 225,214"), "#c9525a", "#d9676a")
    front = blob(
        "228,148! 212,156 200,174 196,200 186,236! 178,182 186,146 212,128 240,134 256,156 260,196 "
        "254,224! 249,180 242,158"
    )
    c.paint(move(front, 1, 4), "#8a4448", blur=2.5, opacity=0.6, clip=face)
    c.form(front, *hair, shade="#2a1830", shine="#ffb27e", depth=7)
    c.paint(limb("224,142,1 202,152,2 190,180,1"), "#a4605a", blur=1, opacity=0.7)
    fringe = (f"{69 + k},{242 + k * 4.6},1.5 {52 + k},{240 + k * 5},.9" for k in range(8))
    c.paint(limb(";".join(fringe)), "#f0a548")
    scarf = blob(
        "212,238! 176,256 138,232 104,256 66,240! 74,276! 108,288 140,264 176,288 214,262!;"
        "178,240 186,228 222,252 252,226 264,238 258,258 236,272 214,274 190,262;"
        "184,226 194,222 222,240 246,220 256,228 250,246 224,256 194,246"
    )
    creases = (
        "206,254,1 172,270,3 138,246,2 96,268,1;190,250,1 222,264,2 254,246,1;194,236,1 248,236,1"
    )
    for cloth in ([part] for part in scarf):
        c.paint(move(cloth, 0, 6), "#13234a", blur=4, opacity=0.45, clip=body + arms)
        c.paint(cloth, "#ffcd69", "#f0a548", "#d9783a")
        c.paint(limb(creases), "#b4502f", blur=1.6, opacity=0.6, clip=cloth)
        c.paint(cloth, "#a84a35", blur=3, opacity=0.55, clip=cloth, cut=move(cloth, 1, -5))
        c.paint(cloth, "#fff3cc", blur=1.4, opacity=0.8, clip=cloth, cut=move(cloth, -3, 2))
    c.glow(400, 376, 420, "#ff9a60", 0.16)
    return c


def draw_dancer() -> Canvas:
    """A ballet dancer in an arabesque between red curtains, under spot lights."""
    c, rng = Canvas(640, 640, sun=(0.35, -0.9)), Random(3)
    c.paint(box(0, 0, 640, 470), "#171338", "#30266b", "#5f4495", "#9a62aa")
    c.paint(box(0, 462, 640, 640), "#5b2c3f", "#8a4a45", "#6a3340", "#35182c")
    for k in range(-26, 27):
        a, b = 320 + k * 26, 320 + k * 60
        c.paint(polygon(f"{a},462 {a + 1},462 {b + 4},640 {b},640"), "#35182c", opacity=0.6)
    c.paint(box(0, 440, 640, 466), "#1d0b28", blur=7, opacity=0.5)
    c.paint(ellipse(318, 556, 200, 44), "#ffdcae", blur=20, opacity=0.8, light=True)
    beams = polygon(
        "118,-30 142,-30 470,556 190,560;498,-30 522,-30 446,560 166,556;"
        "306,-30 334,-30 452,558 184,558"
    )
    for beam, color in zip(beams, ("#ffc9a0", "#b9a8ff", "#ffe6c0"), strict=True):
        c.paint([beam], color, color, "#3a2a55", blur=6, opacity=0.3, light=True)
    for _ in range(40):
        x, y, r = rng.gauss(320, 120), rng.uniform(60, 500), rng.uniform(0.4, 1.5)
        c.paint(ellipse(x, y, r, r), "#ffeccc", blur=r / 3, opacity=rng.uniform(0.15, 0.6))

    drape = blob("-40,-20! 156,-20! 132,140 104,260 58,384! 84,450 108,566! -40,566!")
    fold = limb("156,-20,5 132,140,4 104,260,4 58,384,3 58,384,3 84,450,4 108,566,5")
    for side in (1, -1):
        at = (0 if side == 1 else 640, 0, side)
        cloth = move(drape, *at)
        c.paint(move(cloth, 12 * side, 6), "#0a0414", blur=12, opacity=0.6)
        c.paint(cloth, "#7a1226", "#a81f33", "#8f1a2d", "#5d0f20")
        for k in range(6):
            dark, bright = (move(move(fold, 0, 0, f), *at) for f in (k / 5, (k + 0.5) / 5))
            c.paint(dark, "#2a030c", blur=4.5, opacity=0.95, clip=cloth)
            c.paint(bright, "#ff5a50", blur=3.5, opacity=0.6, clip=cloth)
        cord = move(limb("-10,366,5 26,386,6 60,384,5"), *at)
        c.form(cord, "#ffd98c", "#c98a3a", shade="#7a4520", shine="#fff3c4", depth=4)
    for k in (0, 2, 4, 1, 3):
        swag = ellipse(64 + 128 * k, 4, 84, 56)
        c.paint(move(swag, 0, 10), "#0a0414", blur=6, opacity=0.6)
        c.paint(move(swag, 0, 5), "#ffd98c", "#e0a850")
        c.paint(swag, "#5d0f20", "#8f1a2d", "#c22c3c")
        crease = ellipse(64 + 128 * k, 4, 54, 34)
        c.paint(crease, "#2a030c", blur=2.5, opacity=0.8, cut=move(crease, 0, -4))

    c.paint(ellipse(300, 560, 84, 11), "#2a0f22", blur=6, opacity=0.6)
    skin = ("#ffd8b8", "#f0ac8e")
    tan = {"shade": "#b56a74", "shine": "#fff2dc"}
    rose = {"shade": "#b0546c", "shine": "#fff0ea"}
    rear = limb("322,372,21 276,386,19 226,366,15 200,350,12.5 164,330,11.5 130,308,6 116,299,5")
    stand = limb("318,370,20 322,420,18 320,452,13 317,486,12 320,520,7 320,536,6")
    shoes = limb("136,311,6.5 118,300,6 98,286,2.2"), limb("320,530,6.6 321,545,6 320,561,2.4")
    far_arm = limb("338,262,9 300,250,8 262,252,6.5 226,240,4.6 206,230,3.8 196,230,3.2 184,236,1")
    near_arm = limb("352,264,9.5 388,240,8 418,216,6.5 446,182,4.6 457,164,4 464,154,3 478,148,1")
    under = blob(
        "318,340 296,352 230,356 172,392 146,440! 186,432 204,452! 244,438 270,470! 306,448 "
        "338,472! 362,440 398,446! 392,398 356,352"
    )
    tulle = blob(
        "336,336 306,346 246,372 190,420 176,470! 214,456 236,478! 268,456 294,480! 322,452 "
        "352,466! 366,428 384,424! 374,382 352,346"
    )
    c.form(far_arm, *skin, **tan, depth=4)
    c.paint(under, "#f7a8b8", "#d981aa", "#a860a4", opacity=0.8)
    for leg, shoe in ((rear, shoes[0]), (stand, shoes[1])):
        c.form(leg, *skin, **tan, depth=7)
        c.form(shoe, "#ffd0c4", "#e88f93", **rose, depth=4)
    c.paint(limb("313,516,1 327,510,1;313,508,1 327,516,1;140,319,1 147,305,1"), "#f2a3a4")
    c.paint(move(under, 0, 6), "#6d2f62", blur=5, opacity=0.4, clip=rear + stand)
    c.paint(tulle, "#fff1ea", "#ffc4c6", "#ee86ab", opacity=0.82)
    folds = limb(
        "326,350,1 262,392,4 204,464,8;332,352,1 290,400,4 268,466,7;"
        "340,354,1 326,400,4 322,462,7;348,352,1 358,390,3 366,436,6"
    )
    c.paint(folds, "#b8508c", blur=3.5, opacity=0.45, clip=tulle)
    c.paint(move(folds, -13, 0), "#fff8f0", blur=3.5, opacity=0.5, clip=tulle)
    c.paint(tulle, "#fff0f0", blur=0.8, opacity=0.8, clip=tulle, cut=move(tulle, 0, -2))

    c.paint(limb("344,266,12 348,246,9 352,232,9"), "#f0b093", "#e09a82")
    c.paint(blob("326,262 332,252 346,254 360,257 364,266 358,282 346,284 330,280"), *skin)
    bodice = blob(
        "330,256! 322,284 318,312 314,338 320,347 342,350 358,342 362,318 368,292 362,276 "
        "358,258! 346,274"
    )
    c.form(bodice, "#fff3ea", "#ffc9c6", "#f193ac", **rose, depth=8)
    c.paint(limb("310,338,3 337,349,3.4 364,338,3"), "#ffe3a0", "#e0aa4e", clip=bodice)
    c.form(near_arm, *skin, **tan, depth=4)

    head = blob(
        "340,196 336,216 344,232 358,240 369,238 373,226 375,217! 372,212 373,202 364,188 350,186"
    )
    c.form(head, *skin, shade="#c97c78", shine="#fff2dc", depth=6)
    c.paint(ellipse(360, 224, 5, 3.6), "#ef7f78", blur=2.4, opacity=0.7, clip=head)
    lashes = "361,212.5,.5 365,214.6,1.1 370,213,.6;360,205.5,.5 365,203.6,.9 370,205,.5"
    c.paint(limb(lashes), "#3a1c2a")
    c.paint(limb("365.5,228.6,.5 368.5,231,1.1 372.5,229.6,.7"), "#cf4f5c")
    crown = blob("372,200! 370,184 352,174 336,182 330,200 334,220 342,226! 346,212 354,202")
    for lock in (ellipse(332, 190, 12.5, 12), crown):
        c.form(lock, "#6e3a38", "#3a1e2c", shade="#2a1424", shine="#e0986c", depth=6)
    c.paint(limb("340,180,1.2 345,190,1.8 340,201,1.2"), "#ffe3a0", "#e0aa4e")
    return c


def draw_landscape() -> Canvas:
    """A cottage among green hills on a bright day."""
    c, rng = Canvas(704, 544, sun=(0.6, -0.8)), Random(11)
    c.paint(box(0, 0, 704, 330), "#2b7fd0", "#5caeea", "#a5d8f5", "#eef6e6")
    c.glow(596, 84, 330, "#fff0b8", 0.5)
    c.glow(596, 84, 110, "#fff6cf", 0.8)
    c.paint(ellipse(596, 84, 32, 32), "#fffdf0", "#fff0b0")
    for x, y, size in rows("150,92,64 408,66,42 322,176,34 530,186,50 20,200,40 690,170,34"):
        puffs = ellipse(x, y + size * 0.12, size * 1.5, size * 0.16)
        for k in np.linspace(-1, 1, 9):
            r = size * (0.62 - 0.42 * abs(k)) * rng.uniform(0.7, 1.15)
            puffs += ellipse(x + k * size * 1.3, y - r * 0.5, r, r * 0.95)
        sky = box(x - 2 * size, y + size * 0.2, x + 2 * size, y + 2 * size)
        c.paint(puffs, "#ffffff", "#fafdff", "#c3dcf0", cut=sky, blur=0.8, opacity=0.95)
    birds = "258,104,.4 264,99,1 270,104,.9 276,98,1 283,102,.4"
    c.paint(limb(birds) + move(limb(birds), 106, 54, 0.7, 0.7), "#3d6f9e")
    peaks = "-9,300 60,246 104,270 176,206 236,262 290,232 352,282 440,240 500,268 580,214 650,262"
    c.paint(polygon(f"{peaks} 713,236 713,360 -9,360"), "#86b4d8", "#c6dfe2")
    ridge = "-40,290! 40,270 130,286 230,262 340,300 450,268 560,292 640,262 760,280! 760,400!"
    c.paint(blob(f"{ridge} -40,400!"), "#7fb7b4", "#b2d8b2")
    for x in range(-6, 720, 13):
        h, y = rng.uniform(14, 27), 300 + 8 * np.sin(x / 60)
        pine = polygon(f"{x - h * 0.32},{y} {x},{y - h} {x + h * 0.32},{y}")
        c.paint(pine, "#5f9f97", "#7fb89c")
    field = "-40,320! 60,296 180,290 300,318 420,330 540,300 640,292 760,310! 760,470! -40,470!"
    c.paint(blob(field), "#a8d47c", "#6fb567")
    crops = limb("-10,338,2 120,312,2 250,330,2;-10,352,2 120,326,2 270,346,2")
    c.paint(crops, "#5fa75c", blur=1.2, opacity=0.6)
    for x, y, size in rows("300,338,17 326,342,22 640,308,22 668,310,28 610,308,17 250,330,15"):
        c.tree(rng, x, y, size, "#3f8a56", "#5aa75f", "#84c66d")
    hill = "-40,430! 60,404 200,392 330,356 470,340 600,352 760,376! 760,600! -40,600!"
    c.paint(blob(hill), "#b4dc6a", "#74bb57", "#3f9150")
    path = blob(
        "470,352! 486,352! 500,376 440,396 372,420 420,452 470,490 420,560! 250,560! 330,490 "
        "330,452 290,422 360,392 450,376"
    )
    c.form(path, "#f7e6b8", "#e2bd84", shade="#b98a56", shine="#fff6da", depth=4)

    c.tree(rng, 606, 358, 58, "#2f7d4d", "#4a9c55", "#79c163", "#a8dc78")
    c.paint(polygon("400,362 580,362 560,372 380,374"), "#1c4a3c", blur=3, opacity=0.5)
    c.paint(box(536, 240, 552, 280) + box(533, 237, 555, 243), "#7a3a3c", "#a8584a")
    for k in range(6):
        smoke = ellipse(546 + 5 * k + 3 * (k % 2), 228 - 13 * k, 5 + 2 * k, 4.5 + 1.6 * k)
        c.paint(smoke, "#ffffff", blur=3 + k / 2, opacity=0.62 - 0.09 * k)
    side = box(498, 300, 576, 360)
    c.paint(side, "#fff3d6", "#f0d9b0")
    c.paint(box(498, 300, 576, 310), "#7a5a50", blur=3, opacity=0.5, clip=side)
    c.paint(polygon("426,360 426,300 462,254 498,300 498,360"), "#f3dfc2", "#d9bd9a")
    c.paint(polygon("462,252 550,252 588,306 504,306"), "#e8765a", "#b9483f")
    tiles = (
        f"{462 + 8 * k},{252 + 11 * k},.6 {550 + 8 * k},{252 + 11 * k},.6" for k in range(1, 5)
    )
    c.paint(limb(";".join(tiles)), "#93363a", opacity=0.6)
    c.paint(limb("504,306,3! 462,254,3! 418,306,3"), "#8f3a3c")
    for x, y in rows("512,322 544,322 454,288"):
        c.paint(box(x - 2, y - 2, x + 18, y + 20), "#ffffff")
        c.paint(box(x, y, x + 16, y + 18), "#4f8fc0", "#a9d8ee")
        c.paint(box(x + 7, y, x + 9, y + 18) + box(x, y + 8, x + 16, y + 10), "#ffffff")
    c.paint(box(468, 322, 488, 360), "#8a4f3a", "#6b3a30")
    c.paint(ellipse(484, 343, 1.3, 1.3), "#ffd98c")
    for x in (432, 445, 502, 520, 538, 556, 572):
        c.tree(rng, x, 364, 9, "#3a8a50", "#62b05a", "#97d26c")

    for x in range(4, 300, 30):
        c.paint(box(x, 404 - x * 0.1, x + 5, 432 - x * 0.1), "#fffaf0", "#cdbb9c")
    rail = polygon("0,410 279,382 279,386 0,414")
    c.paint(rail + move(rail, 0, 10), "#fff8ea", "#dccaa8")
    c.tree(rng, 96, 470, 118, "#256b45", "#3a8a4c", "#62ad56", "#93d068", "#c0e884")
    front = blob("-40,470! 80,466 200,490 330,530 460,528 580,490 760,450! 760,600! -40,600!")
    c.paint(front, "#6fb94f", "#2f7f45")
    c.grass(rng, 260, 466, front, "#8fd060", "#4fa04c", "#3a8a48")
    for _ in range(90):
        x, y, r = rng.uniform(0, 704), rng.uniform(476, 544), rng.uniform(1.4, 3)
        if not 270 < x < 500:
            petals = rng.choice(("#ffffff", "#ffd84f", "#ff7f7a", "#f7a7d0"))
            c.paint(ellipse(x, y, r, r), petals)
            c.paint(ellipse(x, y, r / 3, r / 3), "#e89a3a")
    return c


SCENES = {"person": draw_person, "dancer": draw_dancer, "landscape": draw_landscape}


def main() -> None:
    """Writes every example picture next to this file."""
    for name, draw in SCENES.items():
        draw().save(Path(__file__).with_name(f"{name}.png"))


if __name__ == "__main__":
    main()
