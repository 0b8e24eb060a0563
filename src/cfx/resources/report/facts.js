// Facts: elements (symbol:name:colour:covalent radius in pm, by atomic number; colours as in Jmol, radii of Cordero et
// al. 2008, made-up ones beyond curium) and Hermann-Mauguin symbols by number, with _ before subscripts.
const ELEMENTS = `
H:Hydrogen:ffffff:31 He:Helium:d9ffff:28 Li:Lithium:cc80ff:128 Be:Beryllium:c2ff00:96 B:Boron:ffb5b5:84
C:Carbon:909090:76 N:Nitrogen:3050f8:71 O:Oxygen:ff0d0d:66 F:Fluorine:90e050:57 Ne:Neon:b3e3f5:58 Na:Sodium:ab5cf2:166
Mg:Magnesium:8aff00:141 Al:Aluminum:bfa6a6:121 Si:Silicon:f0c8a0:111 P:Phosphorus:ff8000:107 S:Sulfur:ffff30:105
Cl:Chlorine:1ff01f:102 Ar:Argon:80d1e3:106 K:Potassium:8f40d4:203 Ca:Calcium:3dff00:176 Sc:Scandium:e6e6e6:170
Ti:Titanium:bfc2c7:160 V:Vanadium:a6a6ab:153 Cr:Chromium:8a99c7:139 Mn:Manganese:9c7ac7:139 Fe:Iron:e06633:132
Co:Cobalt:f090a0:126 Ni:Nickel:50d050:124 Cu:Copper:c88033:132 Zn:Zinc:7d80b0:122 Ga:Gallium:c28f8f:122
Ge:Germanium:668f8f:120 As:Arsenic:bd80e3:119 Se:Selenium:ffa100:120 Br:Bromine:a62929:120 Kr:Krypton:5cb8d1:116
Rb:Rubidium:702eb0:220 Sr:Strontium:00ff00:195 Y:Yttrium:94ffff:190 Zr:Zirconium:94e0e0:175 Nb:Niobium:73c2c9:164
Mo:Molybdenum:54b5b5:154 Tc:Technetium:3b9e9e:147 Ru:Ruthenium:248f8f:146 Rh:Rhodium:0a7d8c:142
Pd:Palladium:006985:139 Ag:Silver:c0c0c0:145 Cd:Cadmium:ffd98f:144 In:Indium:a67573:142 Sn:Tin:668080:139
Sb:Antimony:9e63b5:139 Te:Tellurium:d47a00:138 I:Iodine:940094:139 Xe:Xenon:429eb0:140 Cs:Cesium:57178f:244
Ba:Barium:00c900:215 La:Lanthanum:70d4ff:207 Ce:Cerium:ffffc7:204 Pr:Praseodymium:d9ffc7:203 Nd:Neodymium:c7ffc7:201
Pm:Promethium:a3ffc7:199 Sm:Samarium:8fffc7:198 Eu:Europium:61ffc7:198 Gd:Gadolinium:45ffc7:196 Tb:Terbium:30ffc7:194
Dy:Dysprosium:1fffc7:192 Ho:Holmium:00ff9c:192 Er:Erbium:00e675:189 Tm:Thulium:00d452:190 Yb:Ytterbium:00bf38:187
Lu:Lutetium:00ab24:187 Hf:Hafnium:4dc2ff:175 Ta:Tantalum:4da6ff:170 W:Tungsten:2194d6:162 Re:Rhenium:267dab:151
Os:Osmium:266696:144 Ir:Iridium:175487:141 Pt:Platinum:d0d0e0:136 Au:Gold:ffd123:136 Hg:Mercury:b8b8d0:132
Tl:Thallium:a6544d:145 Pb:Lead:575961:146 Bi:Bismuth:9e4fb5:148 Po:Polonium:ab5c00:140 At:Astatine:754f45:150
Rn:Radon:428296:150 Fr:Francium:420066:260 Ra:Radium:007d00:221 Ac:Actinium:70abfa:215 Th:Thorium:00baff:206
Pa:Protactinium:00a1ff:200 U:Uranium:008fff:196 Np:Neptunium:0080ff:190 Pu:Plutonium:006bff:187
Am:Americium:545cf2:180 Cm:Curium:785ce3:169 Bk:Berkelium:8a4fe3:160 Cf:Californium:a136d4:160
Es:Einsteinium:b31fd4:160 Fm:Fermium:b31fba:160 Md:Mendelevium:b30da6:160 No:Nobelium:bd0d87:160
Lr:Lawrencium:c70066:160 Rf:Rutherfordium:cc0059:160 Db:Dubnium:d1004f:160 Sg:Seaborgium:d90045:160
Bh:Bohrium:e00038:160 Hs:Hassium:e6002e:160 Mt:Meitnerium:eb0026:160 Ds:Darmstadtium:e6002e:160
Rg:Roentgenium:e6002e:160 Cn:Copernicium:e6002e:160 Nh:Nihonium:e6002e:160 Fl:Flerovium:e6002e:160
Mc:Moscovium:e6002e:160 Lv:Livermorium:e6002e:160 Ts:Tennessine:e6002e:160 Og:Oganesson:e6002e:160
`.trim().split(/\s+/).map((text, index) => {
  const [symbol, name, color, radius] = text.split(":");
  return { number: index + 1, symbol, name, color: `#${color}`, radius: radius / 100 };
});

const SPACE_GROUPS = `
P1 P-1 P2 P2_1 C2 Pm Pc Cm Cc P2/m P2_1/m C2/m P2/c P2_1/c C2/c P222 P222_1 P2_12_12 P2_12_12_1 C222_1 C222 F222 I222
I2_12_12_1 Pmm2 Pmc2_1 Pcc2 Pma2 Pca2_1 Pnc2 Pmn2_1 Pba2 Pna2_1 Pnn2 Cmm2 Cmc2_1 Ccc2 Amm2 Aem2 Ama2 Aea2 Fmm2 Fdd2
Imm2 Iba2 Ima2 Pmmm Pnnn Pccm Pban Pmma Pnna Pmna Pcca Pbam Pccn Pbcm Pnnm Pmmn Pbcn Pbca Pnma Cmcm Cmce Cmmm Cccm
Cmme Ccce Fmmm Fddd Immm Ibam Ibca Imma P4 P4_1 P4_2 P4_3 I4 I4_1 P-4 I-4 P4/m P4_2/m P4/n P4_2/n I4/m I4_1/a P422
P42_12 P4_122 P4_12_12 P4_222 P4_22_12 P4_322 P4_32_12 I422 I4_122 P4mm P4bm P4_2cm P4_2nm P4cc P4nc P4_2mc P4_2bc
I4mm I4cm I4_1md I4_1cd P-42m P-42c P-42_1m P-42_1c P-4m2 P-4c2 P-4b2 P-4n2 I-4m2 I-4c2 I-42m I-42d P4/mmm P4/mcc
P4/nbm P4/nnc P4/mbm P4/mnc P4/nmm P4/ncc P4_2/mmc P4_2/mcm P4_2/nbc P4_2/nnm P4_2/mbc P4_2/mnm P4_2/nmc P4_2/ncm
I4/mmm I4/mcm I4_1/amd I4_1/acd P3 P3_1 P3_2 R3 P-3 R-3 P312 P321 P3_112 P3_121 P3_212 P3_221 R32 P3m1 P31m P3c1 P31c
R3m R3c P-31m P-31c P-3m1 P-3c1 R-3m R-3c P6 P6_1 P6_5 P6_2 P6_4 P6_3 P-6 P6/m P6_3/m P622 P6_122 P6_522 P6_222 P6_422
P6_322 P6mm P6cc P6_3cm P6_3mc P-6m2 P-6c2 P-62m P-62c P6/mmm P6/mcc P6_3/mcm P6_3/mmc P23 F23 I23 P2_13 I2_13 Pm-3
Pn-3 Fm-3 Fd-3 Im-3 Pa-3 Ia-3 P432 P4_232 F432 F4_132 I432 P4_332 P4_132 I4_132 P-43m F-43m I-43m P-43n F-43c I-43d
Pm-3m Pn-3n Pm-3n Pn-3m Fm-3m Fm-3c Fd-3m Fd-3c Im-3m Ia-3d
`.trim().split(/\s+/);

const BY_SYMBOL = new Map(ELEMENTS.map((element) => [element.symbol, element]));
const UNKNOWN = { number: 0, symbol: "?", name: "unknown", color: "#9a9a9a", radius: 1.3 };

/** The element a species such as "Fe", "Fe3+" or "Fe0.5Ni0.5" begins with. */
function elementOf(species) {
  const [symbol] = String(species).match(/^[A-Z][a-z]?/) || [""];
  return BY_SYMBOL.get(symbol) || BY_SYMBOL.get(symbol[0]) || { ...UNKNOWN, symbol: String(species) };
}

/** The elements named in a formula, each once. */
function elementsIn(formula) {
  const symbols = String(formula || "").match(/[A-Z][a-z]?/g) || [];
  return [...new Set(symbols)].map((symbol) => BY_SYMBOL.get(symbol)).filter(Boolean);
}

/** The elements of what somebody typed: "Li O", "li,o", "LiO2". */
function elementsTyped(text) {
  const words = text.match(/[A-Za-z]+/g) || [];
  const proper = (word) => (word === word.toLowerCase() ? word[0].toUpperCase() + word.slice(1) : word);
  return elementsIn(words.map(proper).join(" "));
}

/** Row and column in the table of 18 columns; the f-block is rows 9 and 10. */
function placeOf(number) {
  if (number >= 57 && number <= 71) return [9, number - 54];
  if (number >= 89 && number <= 103) return [10, number - 86];
  const nobles = [0, 2, 10, 18, 36, 54, 86, 118];
  const row = nobles.findIndex((noble) => number <= noble);
  const [left, right] = [number - nobles[row - 1], nobles[row] - number];
  return [row, left <= (row === 1 ? 1 : 2) && right > 0 ? left : 18 - right];
}

/** "P6_3/mmc" as it is printed, with small digits. */
function spaceGroupSymbol(number) {
  const symbol = SPACE_GROUPS[number - 1];
  return symbol ? symbol.replace(/_(\d)/g, (_, digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]) : "";
}

/** "225 Fm-3m", or a dash. */
function spaceGroupName(number) {
  return number == null ? DASH : `${number} ${spaceGroupSymbol(number)}`.trim();
}

/** Whether a crystal is so far below the hull that the hull or its energy has to be wrong. */
const isBelowFloor = (record) => record.verdict === "below the floor";

/** A record as the second potential sees it. */
const bySecond = (record) => ({ e_above_hull: record.second_e_above_hull, verdict: record.second_verdict });
