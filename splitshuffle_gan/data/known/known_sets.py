"""Sets of scans that many use: where they are, what they may be used for, how to prepare them. Facts only, no work."""

from dataclasses import dataclass

from splitshuffle_gan.errors import UserError


@dataclass(frozen=True)
class KnownSet:
    """One set.

    Attributes:
        name: what `splitshuffle fetch` calls it.
        title, content: what it is, what is in it.
        size: of the download, roughly; for people.
        licence, citation, terms: what its owners ask.
        homepage: where it is described.
        layout: how its archive or tree is laid out, see `fetch`.
        prepare: arguments of `splitshuffle prepare` that suit it, `{to}` for its folder.
        task: MONAI's name of a Decathlon task; address and MD5 come from MONAI.
        url, md5: of the archive where `task` is empty; without an MD5 the first download cannot be verified.
        instructions: how to get it by hand, where no download is allowed.
    """

    name: str
    title: str
    content: str
    size: str
    licence: str
    citation: str
    homepage: str
    layout: str
    prepare: str
    terms: str = ""
    task: str = ""
    url: str = ""
    md5: str = ""
    instructions: str = ""

    @property
    def by_hand(self) -> bool:
        """Whether its owners give it out themselves, after a registration."""
        return not (self.task or self.url)


def archive_of(known: KnownSet) -> tuple[str, str]:
    """(address, MD5 or "") of a set's archive. For the Decathlon both are MONAI's own, so they stay current with it."""
    if not known.task:
        return known.url, known.md5
    from monai.apps.datasets import DecathlonDataset  # imports torch: seconds that `--list` need not take

    return DecathlonDataset.resource[known.task], DecathlonDataset.md5[known.task]


def known_set(name: str) -> KnownSet:
    """The set of that name. Raises UserError for an unknown one."""
    if name not in KNOWN_SETS:
        raise UserError(f"name: {name!r} is no known set; choose one of {', '.join(KNOWN_SETS)}")
    return KNOWN_SETS[name]


def describe(known: KnownSet, to: str = "DIR") -> str:
    """What a user should read before using a set, several lines."""
    rows = [
        ("content", known.content),
        ("size", known.size),
        ("licence", known.licence),
        ("terms", known.terms),
        ("cite", known.citation),
        ("see", known.homepage),
        ("prepare", f"splitshuffle prepare {known.prepare.format(to=to)}"),
    ]
    return "\n".join([f"{known.name}: {known.title}", *(f"  {key:8s} {value}" for key, value in rows if value)])


MSD_CITATION = (
    "Antonelli et al., The Medical Segmentation Decathlon, Nat Commun 13, 4128 (2022); "
    "Simpson et al., arXiv 1902.09063 (2019)"
)
# Name, task, organ, content, size, arguments of prepare after the folder of images. Contents and sizes are the
# publishers' own, rounded; the 4D sets hold several contrasts per file, of which one must be named.
MSD = (
    ("msd-braintumour", "Task01_BrainTumour", "brain tumours", "750 brain MR (484 labelled), 4D: FLAIR, T1, T1gd, T2",
     "7 GB", "--preset brain --volume 1"),
    ("msd-heart", "Task02_Heart", "left atrium", "30 heart MR (20 labelled)", "0.4 GB",
     "--shape 64 128 128 --spacing 2.5 2 2 --percentiles 0.5 99.5"),
    ("msd-liver", "Task03_Liver", "liver and tumours", "201 abdominal CT (131 labelled)", "27 GB",
     "--shape 64 256 256 --spacing 5 1.6 1.6 --window -150 250"),
    ("msd-hippocampus", "Task04_Hippocampus", "hippocampus", "394 cropped brain MR (263 labelled)", "27 MB",
     "--preset hippocampus"),
    ("msd-prostate", "Task05_Prostate", "prostate", "48 pelvic MR (32 labelled), 4D: T2, ADC", "0.2 GB",
     "--shape 16 128 128 --spacing 4 1.25 1.25 --percentiles 0.5 99.5 --volume 0"),
    ("msd-lung", "Task06_Lung", "lung tumours", "96 chest CT (64 labelled)", "9 GB",
     "--shape 64 256 256 --spacing 5 1.5 1.5 --window -1000 400"),
    ("msd-pancreas", "Task07_Pancreas", "pancreas and tumours", "420 abdominal CT (282 labelled)", "11 GB",
     "--shape 64 256 256 --spacing 4 1.6 1.6 --window -150 250"),
    ("msd-hepaticvessel", "Task08_HepaticVessel", "hepatic vessels and tumours", "443 abdominal CT (303 labelled)",
     "9 GB", "--shape 64 256 256 --spacing 5 1.6 1.6 --window -150 250"),
    ("msd-spleen", "Task09_Spleen", "spleen", "61 abdominal CT (41 labelled)", "1.5 GB",
     "--shape 64 256 256 --spacing 5 1.6 1.6 --window -150 250"),
    ("msd-colon", "Task10_Colon", "colon cancer", "190 abdominal CT (126 labelled)", "6 GB",
     "--shape 64 256 256 --spacing 6 1.6 1.6 --window -150 250"),
)  # fmt: skip

IXI_URL = "http://biomedic.doc.ic.ac.uk/brain-development/downloads/IXI/IXI-{contrast}.tar"
# The MD5s that TorchIO's `datasets/ixi.py` checks; for T1, MONAI's tutorials name the same. The publisher gives none.
IXI = (
    ("T1", "34901a0593b41dd19c1a1f746eac2d58", "581 T1-weighted brain MR", "4.8 GB"),
    ("T2", "e3140d78730ecdd32ba92da48c0a9aaa", "578 T2-weighted brain MR", "4 GB"),
    ("PD", "88ecd9d1fa33cb4a2278183b42ffd749", "578 proton-density brain MR", "4 GB"),
    ("MRA", "29be7d2fee3998f978a55a9bdaf3407e", "570 brain MR angiographies", "12 GB"),
)

ADNI_STEPS = """\
ADNI is given out to registered researchers only; nothing can be downloaded from here.
  1. Apply at https://adni.loni.usc.edu (Access Data) and sign the Data Use Agreement.
  2. In the Image and Data Archive (https://ida.loni.usc.edu) search images, e.g. modality MRI, description MPRAGE, add
     them to a collection, and download it as DICOM or as NIfTI. Unpack all parts into one folder.
  3. splitshuffle fetch adni --from FOLDER --to DIR --description MPRAGE
The tree is read as the archive gives it: ADNI/SUBJECT/DESCRIPTION/DATE/IMAGE/ and *.dcm or *.nii in it."""

COCA_STEPS = """\
COCA is given out to registered users only; nothing can be downloaded from here.
  1. Register and accept the agreement at
     https://stanfordaimi.azurewebsites.net/datasets/e8ca74dc-8dd4-4340-815a-60b41f6cb2aa
  2. Copy it with the link you are given: azcopy copy 'LINK' FOLDER --recursive=true
  3. splitshuffle fetch {name} --from FOLDER --to DIR
The tree is read as it comes: {tree}"""

COCA_CITATION = "Stanford AIMI, COCA: Coronary Calcium and chest CT's; Eng et al., npj Digital Medicine 4, 88 (2021)"
COCA_HOME = "https://stanfordaimi.azurewebsites.net/datasets/e8ca74dc-8dd4-4340-815a-60b41f6cb2aa"
STANFORD = "Stanford University Dataset Research Use Agreement: non-commercial research, no redistribution"

_SETS = [
    *(
        KnownSet(
            name=name,
            title=f"Medical Segmentation Decathlon, {task[:6].lower()}: {organ}",
            content=content,
            size=size,
            licence="CC BY-SA 4.0",
            citation=MSD_CITATION,
            homepage="http://medicaldecathlon.com",
            layout="msd",
            prepare=f"{{to}}/images --out {{to}}-prepared {prepare}",
            task=task,
        )
        for name, task, organ, content, size, prepare in MSD
    ),
    *(
        KnownSet(
            name=f"ixi-{contrast.lower()}",
            title=f"IXI, {contrast}",
            content=f"{content} of healthy people from three hospitals in London",
            size=size,
            licence="CC BY-SA 3.0",
            citation="IXI, Information eXtraction from Images (EPSRC GR/S21533/02), brain-development.org",
            homepage="https://brain-development.org/ixi-dataset/",
            layout="flat",
            prepare="{to}/images --out {to}-prepared --preset brain",
            terms="name the website as the source",
            url=IXI_URL.format(contrast=contrast),
            md5=md5,
        )
        for contrast, md5, content, size in IXI
    ),
    KnownSet(
        name="adni",
        title="Alzheimer's Disease Neuroimaging Initiative",
        content="brain MR of ageing, mild impairment and Alzheimer's disease, several visits each; yours to select",
        size="as selected",
        licence="ADNI Data Use Agreement",
        citation="adni.loni.usc.edu; the wording for authors and acknowledgements is in the agreement",
        homepage="https://adni.loni.usc.edu",
        layout="adni",
        prepare="{to}/images --out {to}-prepared --preset brain",
        terms="no redistribution of participants' data, no attempt to identify them; read what it says on AI tools",
        instructions=ADNI_STEPS,
    ),
    KnownSet(
        name="coca-gated",
        title="Stanford COCA, ECG-gated",
        content="about 790 gated cardiac CT, 3 mm; coronary calcium outlined in those that have an XML file",
        size="28 GB with the non-gated part",
        licence=STANFORD,
        citation=COCA_CITATION,
        homepage=COCA_HOME,
        layout="coca-gated",
        prepare="{to}/images --out {to}-prepared --preset heart-ct",
        terms="no redistribution, no attempt to identify patients",
        instructions=COCA_STEPS.format(
            name="coca-gated", tree="Gated_release_final/patient/ID/SERIES/*.dcm and calcium_xml/ID.xml beside patient"
        ),
    ),
    KnownSet(
        name="coca-nongated",
        title="Stanford COCA, not gated",
        content="213 chest CT, 5 mm mostly, with calcium scores per vessel in a table",
        size="28 GB with the gated part",
        licence=STANFORD,
        citation=COCA_CITATION,
        homepage=COCA_HOME,
        layout="coca-nongated",
        prepare="{to}/images --out {to}-prepared --shape 64 256 256 --spacing 5 1.5 1.5 --window -250 650",
        terms="no redistribution, no attempt to identify patients",
        instructions=COCA_STEPS.format(name="coca-nongated", tree="deidentified_nongated/ID/SERIES/*.dcm and scores.*"),
    ),
]
KNOWN_SETS: dict[str, KnownSet] = {known.name: known for known in _SETS}
